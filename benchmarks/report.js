"use strict";
// The script of the page: curves and their legend, the choice of the metric, and rate against time. The images are in
// report.images.js.

const data = JSON.parse(document.getElementById("data").textContent);
const find = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const make = (tag, values = {}) => Object.assign(document.createElement(tag), values);
const press = (buttons, chosen) => buttons.forEach((button) => button.setAttribute("aria-pressed", chosen(button)));
const titles = Object.fromEntries(data.series.map((series) => [series.name, series.title]));
titles.original = "Original";

// Curves

// in the order of report.css
const MARKS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "pentagon", "star", "hexagon", "x"];
const markOf = (series) => MARKS[series.mark];
const chart = find("#chart");
const hiddenSeries = new Set();
let metric = data.metrics[0];

const safe = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;"); // Plotly interprets some tags

function curve(series, colours) {
  const points = series.points.filter((point) => point[metric.key] !== undefined && point[metric.key] !== null);
  const colour = colours.getPropertyValue(`--c${series.colour}`).trim();
  const size = points.length === 1 ? 14 : series.bold ? 10 : 8; // a single point has no line
  return {
    type: "scatter", mode: "lines+markers", name: safe(series.title), visible: !hiddenSeries.has(series.name),
    x: points.map((point) => point.bpp), y: points.map((point) => point[metric.key]),
    text: points.map((point) => safe(data.budgets ? `at most ${point.label}` : point.label)),
    line: { color: colour, width: series.bold ? 4 : 2, dash: series.dashed ? "dash" : series.dotted ? "dot" : "solid" },
    marker: { color: colour, size, symbol: markOf(series) },
    hovertemplate:
      `<b>${safe(series.title)}</b><br>%{text}<br>mean %{x:.4f} bpp<br>` +
      `${metric.title} %{y:.${metric.digits}f} ${metric.unit}<extra></extra>`,
  };
}

// From just below the lowest rate to the next label above the highest, so that all points are between labels
function rateRange() {
  const rates = data.series.flatMap((series) => series.points.map((point) => point.bpp));
  if (!rates.length) return undefined;
  const highest = Math.max(...rates);
  const next = [1, 2, 5, 10].map((digit) => digit * 10 ** Math.floor(Math.log10(highest))).find((value) => value >= 0.99 * highest);
  return [Math.log10(Math.min(...rates) / 1.15), Math.log10(1.03 * next)];
}

// The style of both charts
function chartStyle(colours) {
  const get = (name) => colours.getPropertyValue(name).trim();
  return {
    axis: { gridcolor: get("--rule"), zeroline: false, ticks: "", automargin: true, title: { standoff: 12 } },
    font: { family: get("font-family"), size: 13, color: get("--ink") },
    hoverlabel: { bgcolor: get("--surface"), font: { color: get("--ink") }, align: "left" },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 12, r: 20, t: 36, b: 12 }, // top: space for the toolbar
    showlegend: false, hovermode: "closest", hoverdistance: 30,
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // dragging with a finger scrolls the page
  };
}

const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };

function drawCurves() {
  const colours = getComputedStyle(document.body);
  const { axis, ...layout } = chartStyle(colours);
  const unit = metric.unit ? `${metric.unit}, ` : "";
  layout.xaxis = {
    ...axis, type: "log", dtick: "D2", tickformat: "~g", range: rateRange(), ticklabeloverflow: "allow",
    title: { ...axis.title, text: "bits per pixel" },
  };
  layout.yaxis = { ...axis, title: { ...axis.title, text: `${metric.title} (${unit}${metric.arrow})` } };
  const onTop = [...data.series].sort((a, b) => a.bold - b.bold);
  return Plotly.react(chart, onTop.map((series) => curve(series, colours)), layout, config);
}

function drawLegend() {
  find("#legend").replaceChildren(...data.series.map((series) => {
    const className = `key c${series.colour} m${series.mark}${series.dashed ? " dashed" : ""}${series.dotted ? " dotted" : ""}${series.bold ? " bold" : ""}`;
    const key = make("span", { className });
    key.append(make("i"), series.title);
    const button = make("button", { type: "button", disabled: !series.points.length });
    button.append(key);
    if (!series.points.length) button.title = "At no rate could every image be coded";
    button.dataset.series = series.name;
    button.setAttribute("aria-pressed", String(series.points.length > 0));
    button.addEventListener("click", () => {
      if (!hiddenSeries.delete(series.name)) hiddenSeries.add(series.name);
      button.setAttribute("aria-pressed", String(!hiddenSeries.has(series.name)));
      drawCurves();
    });
    return button;
  }));
}

function chooseMetric(key) {
  metric = data.metrics.find((one) => one.key === key);
  press(all("[data-switch]"), (button) => button.dataset.switch === key);
  all("[data-metric]").forEach((table) => { table.hidden = table.dataset.metric !== key; });
  updateHints();
  drawCurves();
  drawTimes();
}

// Rate against time, at a quality that most codecs reach. A line joins a codec's usual and its quick setting.

const times = find("#times");
let timeOf = "encode";

const pointsOf = (series, common) => {
  const base = series.name.replace(/-quick$/, "");
  return [`${base}-quick`, base]
    .map((name) => data.speeds.find((speed) => speed.name === name))
    .filter((speed) => speed && common.rates[speed.name]);
};

// The position of each codec's title next to its mark, by name: the first position at which it overlaps no earlier title.
// `positionOf` returns the pixels of a mark from the left and from the top.
function titlePositions(bases, common, positionOf) {
  const taken = [];
  const overlap = (a, b) => Math.abs(a.x - b.x) < a.half + b.half && Math.abs(a.y - b.y) < 14;
  return Object.fromEntries(bases.map((series) => {
    const { x, y } = positionOf(pointsOf(series, common).find((speed) => speed.name === series.name));
    const half = 3.5 * series.title.length; // half of its width
    const positions = [
      { name: "top center", x, y: y - 14, half }, { name: "bottom center", x, y: y + 14, half },
      { name: "middle right", x: x + half + 9, y, half }, { name: "middle left", x: x - half - 9, y, half },
    ];
    const chosen = positions.find((position) => !taken.some((other) => overlap(position, other))) ?? positions[0];
    taken.push(chosen);
    return [series.name, chosen.name];
  }));
}

function timesOf(series, common, colours, textposition) {
  const points = pointsOf(series, common);
  const colour = colours.getPropertyValue(`--c${series.colour}`).trim();
  return {
    type: "scatter", mode: "lines+markers+text", name: safe(series.title), textposition, cliponaxis: false,
    customdata: points.map((speed) => safe(titles[speed.name])),
    x: points.map((speed) => speed[timeOf]), y: points.map((speed) => common.rates[speed.name]),
    text: points.map((speed) => (speed.name === series.name ? safe(series.title) : "")), textfont: { color: colour, size: 12 },
    line: { color: colour, width: 1.5 }, marker: { color: colour, size: series.bold ? 13 : 10, symbol: points.map((speed) => markOf(series) + (speed.name.endsWith("-quick") ? "-open" : "")) },
    hovertemplate: `<b>%{customdata}</b><br>%{x:.3~g} s per megapixel<br>%{y:.4f} bpp<extra></extra>`,
  };
}

function drawTimes() {
  if (!times) return;
  const common = data.common[metric.key];
  times.hidden = !common;
  find("#times-note").textContent = common
    ? `Bits per pixel for ${metric.title} ${common.value.toFixed(metric.digits)} ${metric.unit}`.trim() +
      ", the quality that most codecs reach at the image's own size. Codecs that do not reach it have no mark." +
      (data.speeds.some((speed) => speed.name.endsWith("-quick")) ? " Open marks: quick settings." : "")
    : `No two codecs reach the same ${metric.title}, so rate is not drawn against time.`;
  if (!common) return;
  const colours = getComputedStyle(document.body);
  const { axis, ...layout } = chartStyle(colours);
  const values = data.speeds.map((speed) => speed[timeOf]);
  const ends = [Math.log10(Math.min(...values) / 2), Math.log10(Math.max(...values) * 2)]; // titles are wider than marks
  layout.xaxis = {
    ...axis, type: "log", dtick: 1, tickformat: "~g", range: ends, title: { ...axis.title, text: `${timeOf.replace(/e$/, "ing")}, seconds per megapixel` },
  };
  layout.yaxis = { ...axis, rangemode: "tozero", title: { ...axis.title, text: "bits per pixel (lower is better)" } };
  const joined = (series) => common.rates[series.name.replace(/-quick$/, "")] && series.dotted; // to its usual setting
  const bases = data.series.filter((series) => common.rates[series.name] && !joined(series));
  const highest = Math.max(...bases.flatMap((series) => pointsOf(series, common)).map((speed) => common.rates[speed.name]));
  const positions = titlePositions(bases, common, (speed) => ({
    x: (times.clientWidth - 80) * (Math.log10(speed[timeOf]) - ends[0]) / (ends[1] - ends[0]),
    y: (times.clientHeight - 100) * (1 - common.rates[speed.name] / highest),
  }));
  Plotly.react(times, bases.map((series) => timesOf(series, common, colours, positions[series.name])), layout, config);
}

// A table that is wider than its box shows a hint until it is scrolled to its end

function updateHints() {
  all(".wide").forEach((box) => {
    box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 1);
  });
}

if (metric) {
  all("[data-switch]").forEach((button) => button.addEventListener("click", () => chooseMetric(button.dataset.switch)));
  all("[data-time]").forEach((button) => button.addEventListener("click", () => {
    timeOf = button.dataset.time;
    press(all("[data-time]"), (one) => one === button);
    drawTimes();
  }));
  drawLegend();
  drawCurves();
  drawTimes();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawCurves(); drawTimes(); });
}

// The blocks of images follow this script, so that curves are drawn before they are loaded
document.addEventListener("DOMContentLoaded", () => {
  all(".wide").forEach((box) => box.addEventListener("scroll", updateHints, { passive: true }));
  addEventListener("resize", updateHints);
  updateHints();
  if (find("#images") && data.images.length) startImages();
  find("#copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(find("#how code").textContent);
      find("#copy").textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(find("#how code")); // the page may not use the clipboard: the user can copy the selection
    }
  });
});
