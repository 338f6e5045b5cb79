"use strict";
// The images of the page, in three modes: two under a divider, up to four in a grid, and a blind test of two against the
// original. Uses what report.js defines.

const BLIND_ROUNDS = 24; // at most: about ten minutes of looking
const ZOOM_MAX = 16;

const state = { mode: "divider", image: 0, ...data.start };
let block; // of the image that is shown: its images, and what is known of each file

function readBlock(place) {
  if (block?.place !== place) block = { place, ...JSON.parse(document.getElementById(`image-${place}`).textContent) };
}

function chooseImage(place) {
  state.image = place;
  readBlock(place);
  press(all("[data-image]"), (button) => Number(button.dataset.image) === place);
  shape(place);
  show();
}

// The box that images are shown in
function shape(place) {
  const { width, height } = data.images[place];
  const compare = find(".compare");
  compare.style.setProperty("--shape", `${width} / ${height}`);
  // as wide as its pixels, so that none is blurred; small ones may grow, and none is higher than the window
  compare.style.setProperty("--widest", `min(${Math.max(width, 560)}px, ${Math.round(85 * width / height)}vh)`);
}

function show() {
  press(all("[data-rate]"), (button) => Number(button.dataset.rate) === state.rate);
  if (state.mode === "divider") showSides();
  if (state.mode === "grid") showGrid();
}

function chooseMode(mode) {
  state.mode = mode;
  press(all("[data-mode]"), (button) => button.dataset.mode === mode);
  find(".compare").dataset.shows = mode;
  find(".stage").hidden = mode !== "divider";
  find("#grid").hidden = mode !== "grid";
  find("#blind").hidden = mode !== "blind";
  find(".picker").hidden = mode === "blind";
  all("[data-help]").forEach((help) => { help.hidden = help.dataset.help !== mode; });
  magnify(1);
  if (mode === "blind") startBlind();
  else chooseImage(state.image);
}

function magnify(zoom) {
  find(".stage").style.setProperty("--zoom", zoom);
  find(".view").classList.toggle("magnified", zoom > 1);
  all(".panels").forEach((panels) => look(panels, 0.5, 0.5, zoom));
  press(all("[data-zoom]"), (one) => Number(one.dataset.zoom) === zoom);
}

// Shows a codec's image in an image, or hides it where there is none: whether there is one
function showImage(image, codec, name) {
  const place = codec === "original" ? 0 : block.files[state.rate][codec]?.image;
  image.hidden = place === undefined;
  if (place === undefined) return false;
  image.src = `data:image/webp;base64,${block.images[place]}`;
  image.alt = name;
  return true;
}

function fillSelect(select, codec, names) {
  const files = block.files[state.rate];
  select.replaceChildren(...names.map((name) => {
    const none = name === "" || name === "original" || files[name] ? "" : " (no file)";
    return make("option", { value: name, textContent: (titles[name] ?? "Nothing") + none });
  }));
  select.value = codec;
}

const noFile = (codec) => `${titles[codec]} has no file at this rate for this image`;

// What is said about a file; a metric is marked where it is better than those of all the other files
function facts(codec, file, others) {
  const { width, height } = data.images[state.image];
  const row = (name, value, className = "") => [make("dt", { textContent: name }), make("dd", { textContent: value, className })];
  if (codec === "original") return row("Size", `${width}×${height} pixels`);
  if (!file) return [make("dd", { textContent: "No file at this rate for this image.", className: "whole" })];
  const rows = [
    row("Size", `${file.bytes.toLocaleString("en")} bytes`),
    row("Rate", `${file.bpp.toFixed(4)} bpp`),
  ];
  const valueOf = (one, key) => one.metrics[key] ?? Infinity; // JSON has no infinity, which is the PSNR of an exact copy
  for (const { key, title, unit, digits, high } of data.metrics) {
    if (!(key in file.metrics)) continue;
    const value = valueOf(file, key);
    const against = others.filter((other) => other && key in other.metrics).map((other) => valueOf(other, key));
    const best = against.length && against.every((other) => (high ? value > other : value < other));
    rows.push(row(title, `${value === Infinity ? "∞" : value.toFixed(digits)} ${unit}`.trim(), best ? "best" : ""));
  }
  rows.push(row("Setting", file.scale === 1 ? file.setting : `${file.setting}, shrunk to ${file.scale} of its size`, "text"));
  return rows.flat();
}

// Two under a divider

function showSides() {
  showSide("left", "right");
  showSide("right", "left");
  nameSplit();
}

function showSide(here, there) {
  const files = block.files[state.rate];
  const codec = state[here];
  const name = `${data.images[state.image].name}, ${titles[codec]}`;
  const remark = find(`.none.${here}`);
  remark.hidden = showImage(find(`.side.${here} img`), codec, name);
  remark.textContent = noFile(codec);
  find(`.tag.${here}`).textContent = titles[codec];
  find(`.facts.${here}`).replaceChildren(...facts(codec, files[codec], [files[state[there]]]));
  fillSelect(find(`#${here}`), codec, ["original", ...data.shown]);
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

function startDivider() {
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
}

// Panels that are magnified and moved in step. x and y are the middle of what is seen, as shares of the image.

function look(panels, x, y, zoom) {
  const inside = (middle) => Math.min(1 - 0.5 / zoom, Math.max(0.5 / zoom, middle));
  panels.seen = { x: inside(x), y: inside(y), zoom };
  panels.style.setProperty("--zoom", zoom);
  panels.style.setProperty("--x", `${100 * (0.5 - panels.seen.x * zoom)}%`);
  panels.style.setProperty("--y", `${100 * (0.5 - panels.seen.y * zoom)}%`);
  panels.classList.toggle("magnified", zoom > 1);
}

// Magnifies so that what is under a place of the window, in shares of it, stays there
function magnifyAt(panels, left, top, factor) {
  const { x, y, zoom } = panels.seen;
  const next = Math.min(ZOOM_MAX, Math.max(1, zoom * factor));
  look(panels, x + (left - 0.5) * (1 / zoom - 1 / next), y + (top - 0.5) * (1 / zoom - 1 / next), next);
  press(all("[data-zoom]"), (one) => Number(one.dataset.zoom) === next);
}

function moveBy(panels, right, down) {
  const { x, y, zoom } = panels.seen;
  look(panels, x - right / zoom, y - down / zoom, zoom);
}

function followPointers(panels) {
  const pointers = new Map();
  const middle = () => {
    const points = [...pointers.values()];
    const x = points.reduce((sum, point) => sum + point.x, 0) / points.length;
    const y = points.reduce((sum, point) => sum + point.y, 0) / points.length;
    return { x, y, spread: points.reduce((sum, point) => sum + Math.hypot(point.x - x, point.y - y), 0) / points.length };
  };
  const shares = (window, point) => {
    const box = window.getBoundingClientRect();
    return [(point.x - box.left) / box.width, (point.y - box.top) / box.height];
  };
  for (const window of panels.querySelectorAll(".window")) {
    window.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      window.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    });
    window.addEventListener("pointermove", (event) => {
      if (!pointers.has(event.pointerId)) return;
      const before = middle();
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      const after = middle();
      const box = window.getBoundingClientRect();
      moveBy(panels, (after.x - before.x) / box.width, (after.y - before.y) / box.height);
      if (pointers.size > 1 && before.spread) magnifyAt(panels, ...shares(window, after), after.spread / before.spread);
    });
    for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, (event) => pointers.delete(event.pointerId));
    window.addEventListener("dblclick", (event) => {
      magnifyAt(panels, ...shares(window, { x: event.clientX, y: event.clientY }), panels.seen.zoom > 1 ? 1 / ZOOM_MAX : 2);
    });
    window.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey && panels.seen.zoom === 1) return; // the page scrolls
      event.preventDefault();
      magnifyAt(panels, ...shares(window, { x: event.clientX, y: event.clientY }), 2 ** (-event.deltaY / 300));
    }, { passive: false });
    window.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[event.key];
      const factor = { "+": 2, "=": 2, "-": 0.5, 0: 1 / ZOOM_MAX }[event.key];
      if (!factor && (!step || panels.seen.zoom === 1)) return;
      event.preventDefault();
      if (factor) magnifyAt(panels, 0.5, 0.5, factor);
      else moveBy(panels, ...step);
    });
  }
  look(panels, 0.5, 0.5, 1);
}

// Up to four

function showGrid() {
  const files = block.files[state.rate];
  all("#grid .panel").forEach((panel, place) => {
    const codec = state.grid[place] ?? "";
    const window = panel.querySelector(".window");
    panel.classList.toggle("empty", codec === "");
    window.hidden = codec === "";
    fillSelect(panel.querySelector("select"), codec, ["", "original", ...data.shown]);
    const list = panel.querySelector(".facts");
    list.replaceChildren();
    if (codec === "") return;
    const name = `${data.images[state.image].name}, ${titles[codec]}`;
    const remark = panel.querySelector(".none");
    remark.hidden = showImage(panel.querySelector("img"), codec, name);
    remark.textContent = noFile(codec);
    const others = state.grid.filter((other) => other !== codec).map((other) => files[other]);
    list.replaceChildren(...facts(codec, files[codec], others));
  });
}

function startGrid() {
  all("#grid select").forEach((select, place) => {
    select.addEventListener("change", () => {
      state.grid[place] = select.value;
      showGrid();
    });
  });
}

// The blind test: which of two is closer to the original? Their names are shown at the end.

let rounds = []; // { image, codecs: [a, b], won: 0, 1, or undefined where they look alike }
let round = 0;
let asked = 0; // how many rounds there were at the start

function shuffled(list) {
  const mixed = [...list];
  for (let place = mixed.length - 1; place > 0; place -= 1) {
    const other = Math.floor(Math.random() * (place + 1));
    [mixed[place], mixed[other]] = [mixed[other], mixed[place]];
  }
  return mixed;
}

function blindCodecs() {
  const chosen = [...new Set(state.grid)].filter((codec) => codec && codec !== "original");
  return chosen.length > 1 ? chosen : data.shown;
}

function startBlind() {
  const codecs = blindCodecs();
  const pairs = codecs.flatMap((one, place) => codecs.slice(place + 1).map((other) => [one, other]));
  const possible = data.images.flatMap(({ images }, image) => {
    const [here, differ] = [images[state.rate], (one, other) => here[one] && here[other] && here[one] !== here[other]];
    return pairs.filter((pair) => differ(...pair)).map((pair) => ({ image, codecs: shuffled(pair) }));
  });
  rounds = shuffled(possible).slice(0, BLIND_ROUNDS);
  [round, asked] = [0, rounds.length];
  find("#among").textContent = `Among ${codecs.map((codec) => titles[codec]).join(", ")}: choose others in the grid.`;
  showRound();
}

function showRound() {
  press(all("[data-rate]"), (button) => Number(button.dataset.rate) === state.rate);
  const over = round >= rounds.length;
  find("#test").hidden = over;
  find("#tally").hidden = !over;
  if (over) return showTally();
  const { image, codecs } = rounds[round];
  readBlock(image);
  shape(image);
  ["A", "B"].forEach((letter, place) => {
    showImage(find(`#blind [data-side=${letter}] img`), codecs[place], `Image ${letter}`);
  });
  showImage(find("#blind [data-side=original] img"), "original", "Original");
  find("#round").textContent = `${round + 1} of ${rounds.length}`;
  return undefined;
}

function answer(won) {
  rounds[round].won = won;
  round += 1;
  magnify(1);
  showRound();
}

// For each codec in how many of its rounds it was closer, and in how many there was no telling
function tally() {
  const done = rounds.slice(0, round);
  const codecs = [...new Set(done.flatMap((one) => one.codecs))];
  const rows = codecs.map((codec) => {
    const own = done.filter((one) => one.codecs.includes(codec));
    return {
      codec, shown: own.length,
      closer: own.filter((one) => one.codecs[one.won] === codec).length,
      alike: own.filter((one) => one.won === undefined).length,
    };
  });
  return rows.sort((a, b) => b.closer / b.shown - a.closer / a.shown);
}

function showTally() {
  const rows = tally();
  find("#tally p").textContent = rows.length
    ? `${round} answers at ${find(`[data-rate='${state.rate}']`).textContent} bits per pixel`
    : asked ? "No answer was given." : "There is nothing to compare: choose two codecs in the grid that have files at this rate.";
  find("#tally table").hidden = !rows.length;
  find("#tally tbody").replaceChildren(...rows.map(({ codec, shown, closer, alike }) => {
    const row = make("tr");
    row.append(make("th", { scope: "row", textContent: titles[codec] }));
    row.append(...[closer, alike, shown - closer - alike, shown].map((count) => make("td", { textContent: count })));
    return row;
  }));
}

function startImages() {
  startDivider();
  startGrid();
  all(".panels").forEach(followPointers);
  all("[data-mode]").forEach((button) => button.addEventListener("click", () => chooseMode(button.dataset.mode)));
  all("[data-rate]").forEach((button) => button.addEventListener("click", () => {
    state.rate = Number(button.dataset.rate);
    if (state.mode === "blind") startBlind();
    else show();
  }));
  all("[data-image]").forEach((button) => button.addEventListener("click", () => {
    chooseImage(Number(button.dataset.image));
  }));
  all("[data-zoom]").forEach((button) => button.addEventListener("click", () => magnify(Number(button.dataset.zoom))));
  all("[data-answer]").forEach((button) => button.addEventListener("click", () => {
    answer({ A: 0, B: 1 }[button.dataset.answer]);
  }));
  find("#stop").addEventListener("click", () => {
    rounds.length = round;
    showRound();
  });
  find("#again").addEventListener("click", startBlind);
  chooseMode("divider");
}
