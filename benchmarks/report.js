"use strict";
// The page's script: curves with their legend, the metric that curves and tables show, and pictures side by side.

const data = JSON.parse(document.getElementById("data").textContent);
const find = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const make = (tag, values = {}) => Object.assign(document.createElement(tag), values);
const press = (buttons, chosen) => buttons.forEach((button) => button.setAttribute("aria-pressed", chosen(button)));
const titles = Object.fromEntries(data.series.map((series) => [series.name, series.title]));
titles.original = "Original";

// Curves

// as report.css has them
const MARKS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "pentagon", "star", "hexagon", "x"];
const chart = find("#chart");
const hiddenSeries = new Set();
let metric = data.metrics[0];

function curve(series, colours) {
  const points = series.points.filter((point) => point[metric.key] !== undefined && point[metric.key] !== null);
  const colour = colours.getPropertyValue(`--c${series.colour}`).trim();
  const safe = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;"); // Plotly reads some tags
  return {
    type: "scatter", mode: "lines+markers", name: safe(series.title), visible: !hiddenSeries.has(series.name),
    x: points.map((point) => point.bpp), y: points.map((point) => point[metric.key]),
    text: points.map((point) => safe(data.budgets ? `at most ${point.label}` : point.label)),
    line: { color: colour, width: series.bold ? 4 : 2, dash: series.dashed ? "dash" : "solid" },
    marker: { color: colour, size: series.bold ? 10 : 8, symbol: MARKS[series.colour] },
    hovertemplate:
      `<b>${safe(series.title)}</b><br>%{text}<br>mean %{x:.4f} bpp<br>` +
      `${metric.title} %{y:.${metric.digits}f} ${metric.unit}<extra></extra>`,
  };
}

// From a little below the lowest rate to the next labelled one above the highest, so that all points stand between labels
function rateRange() {
  const rates = data.series.flatMap((series) => series.points.map((point) => point.bpp));
  if (!rates.length) return undefined;
  const highest = Math.max(...rates);
  const next = [1, 2, 5, 10].map((digit) => digit * 10 ** Math.floor(Math.log10(highest))).find((value) => value >= 0.99 * highest);
  return [Math.log10(Math.min(...rates) / 1.15), Math.log10(1.03 * next)];
}

function drawCurves() {
  const colours = getComputedStyle(document.body);
  const get = (name) => colours.getPropertyValue(name).trim();
  const axis = { gridcolor: get("--rule"), zeroline: false, ticks: "", automargin: true, title: { standoff: 12 } };
  const unit = metric.unit ? `${metric.unit}, ` : "";
  const layout = {
    xaxis: {
      ...axis, type: "log", dtick: "D2", tickformat: "~g", range: rateRange(), ticklabeloverflow: "allow",
      title: { ...axis.title, text: "bits per pixel" },
    },
    yaxis: { ...axis, title: { ...axis.title, text: `${metric.title} (${unit}${metric.arrow})` } },
    font: { family: get("font-family"), size: 13, color: get("--ink") },
    hoverlabel: { bgcolor: get("--surface"), font: { color: get("--ink") }, align: "left" },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 12, r: 20, t: 36, b: 12 }, // above: room for the toolbar
    showlegend: false, hovermode: "closest", hoverdistance: 30,
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger that drags wants to scroll
  };
  const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };
  const onTop = [...data.series].sort((a, b) => a.bold - b.bold);
  return Plotly.react(chart, onTop.map((series) => curve(series, colours)), layout, config);
}

function drawLegend() {
  find("#legend").replaceChildren(...data.series.map((series) => {
    const look = `key c${series.colour}${series.dashed ? " dashed" : ""}${series.bold ? " bold" : ""}`;
    const key = make("span", { className: look });
    key.append(make("i"), series.title);
    const button = make("button", { type: "button", disabled: !series.points.length });
    button.append(key);
    if (!series.points.length) button.title = "No point at which every picture could be coded";
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
  hintAtMore();
  drawCurves();
}

// Tables wider than their box say so until they are scrolled to their end

function hintAtMore() {
  all(".wide").forEach((box) => {
    box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 1);
  });
}

if (metric) {
  all("[data-switch]").forEach((button) => button.addEventListener("click", () => chooseMetric(button.dataset.switch)));
  drawLegend();
  drawCurves();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCurves);
}

// Pictures

const state = { picture: 0, ...data.start };
let block; // of the chosen picture

function choosePicture(place) {
  state.picture = place;
  block = JSON.parse(document.getElementById(`picture-${place}`).textContent);
  press(all("[data-picture]"), (button) => Number(button.dataset.picture) === place);
  const { width, height } = data.pictures[place];
  const stage = find(".stage");
  stage.style.setProperty("--shape", `${width} / ${height}`);
  // as wide as its pixels, so that none is blurred; small ones may grow, and none is higher than the window
  stage.style.setProperty("--widest", `min(${Math.max(width, 560)}px, ${Math.round(85 * width / height)}vh)`);
  showSides();
}

function showSides() {
  press(all("[data-rate]"), (button) => Number(button.dataset.rate) === state.rate);
  showSide("left", "right");
  showSide("right", "left");
  nameSplit();
}

function showSide(here, there) {
  const files = block.files[state.rate];
  const codec = state[here];
  const file = files[codec];
  const image = find(`.side.${here} img`);
  const remark = find(`.none.${here}`);
  const place = codec === "original" ? 0 : file?.image;
  image.hidden = place === undefined;
  remark.hidden = place !== undefined;
  if (place !== undefined) {
    image.src = `data:image/webp;base64,${block.images[place]}`;
    image.alt = `${data.pictures[state.picture].name}, ${titles[codec]}`;
  }
  remark.textContent = `${titles[codec]} has no file at this rate for this picture`;
  find(`.tag.${here}`).textContent = titles[codec];
  find(`.facts.${here}`).replaceChildren(...facts(codec, file, files[state[there]]));
  const select = find(`#${here}`);
  select.replaceChildren(...["original", ...data.series.map((series) => series.name)].map((name) => {
    const none = name === "original" || files[name] ? "" : " (no file)";
    return make("option", { value: name, textContent: titles[name] + none });
  }));
  select.value = codec;
}

function facts(codec, file, other) {
  const { width, height } = data.pictures[state.picture];
  const row = (name, value, className = "") => [make("dt", { textContent: name }), make("dd", { textContent: value, className })];
  if (codec === "original") return row("Size", `${width}×${height} pixels`);
  if (!file) return [make("dd", { textContent: "No file at this rate for this picture.", className: "whole" })];
  const rows = [
    row("Size", `${file.bytes.toLocaleString("en")} bytes`),
    row("Rate", `${file.bpp.toFixed(4)} bpp`),
  ];
  for (const { key, title, unit, digits, high } of data.metrics) {
    if (!(key in file.metrics)) continue;
    const value = file.metrics[key] ?? Infinity; // JSON has no infinity, which is the PSNR of an exact copy
    const against = other && key in other.metrics ? other.metrics[key] ?? Infinity : value;
    const text = `${value === Infinity ? "∞" : value.toFixed(digits)} ${unit}`.trim();
    rows.push(row(title, text, (high ? value > against : value < against) ? "best" : ""));
  }
  rows.push(row("Setting", file.scale === 1 ? file.setting : `${file.setting}, shrunk to ${file.scale} of its size`, "text"));
  return rows.flat();
}

function setSplit(value) {
  const split = Math.min(1, Math.max(0, value));
  find("#split").value = 100 * split;
  find(".stage").style.setProperty("--split", split);
  find(".tag.left").style.opacity = split < 0.12 ? 0 : 1;
  find(".tag.right").style.opacity = split > 0.88 ? 0 : 1;
  nameSplit();
}

function nameSplit() {
  const percent = Math.round(find("#split").value);
  find("#split").setAttribute("aria-valuetext", `${percent} % ${titles[state.left]}, ${100 - percent} % ${titles[state.right]}`);
}

function setHeight(value) {
  find(".stage").style.setProperty("--height", Math.min(1, Math.max(0, value)));
}

function zoomed() {
  return Number(find(".stage").style.getPropertyValue("--zoom") || 1) > 1;
}

function drag(event) {
  const box = find(".view").getBoundingClientRect();
  setSplit((event.clientX - box.left) / box.width);
  if (zoomed()) setHeight((event.clientY - box.top) / box.height);
}

function startPictures() {
  const view = find(".view");
  const split = find("#split");
  view.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault(); // no selecting of text
    view.setPointerCapture(event.pointerId);
    split.focus({ preventScroll: true });
    drag(event);
  });
  view.addEventListener("pointermove", (event) => { if (view.hasPointerCapture(event.pointerId)) drag(event); });
  split.addEventListener("input", () => setSplit(split.value / 100));
  split.addEventListener("keydown", (event) => {
    const step = { ArrowUp: -0.05, ArrowDown: 0.05 }[event.key];
    if (!step || !zoomed()) return;
    event.preventDefault();
    setHeight(Number(find(".stage").style.getPropertyValue("--height") || 0.5) + step);
  });
  for (const here of ["left", "right"]) {
    find(`#${here}`).addEventListener("change", (event) => { state[here] = event.target.value; showSides(); });
  }
  find("#swap").addEventListener("click", () => { [state.left, state.right] = [state.right, state.left]; showSides(); });
  all("[data-rate]").forEach((button) => button.addEventListener("click", () => {
    state.rate = Number(button.dataset.rate);
    showSides();
  }));
  all("[data-picture]").forEach((button) => button.addEventListener("click", () => {
    choosePicture(Number(button.dataset.picture));
  }));
  all("[data-zoom]").forEach((button) => button.addEventListener("click", () => {
    find(".stage").style.setProperty("--zoom", button.dataset.zoom);
    view.classList.toggle("magnified", zoomed());
    press(all("[data-zoom]"), (one) => one === button);
  }));
  choosePicture(0);
}

// The pictures come after this script, so that curves are drawn before they are all there
document.addEventListener("DOMContentLoaded", () => {
  all(".wide").forEach((box) => box.addEventListener("scroll", hintAtMore, { passive: true }));
  addEventListener("resize", hintAtMore);
  hintAtMore();
  if (find("#pictures") && data.pictures.length) startPictures();
  find("#copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(find("#how code").textContent);
      find("#copy").textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(find("#how code")); // where a page may not copy, a person can
    }
  });
});
