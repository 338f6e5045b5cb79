"use strict";
// The images of the page in three modes: two with a divider, up to four in a grid, and a blind test of two against the original.
// Uses the functions of report.js.

const MAX_ROUNDS = 24; // of the blind test: about ten minutes
const MAX_ZOOM = 16;

const state = { mode: "divider", image: 0, ...data.start };
let block; // of the shown image: its images, and the facts about each file

function readBlock(index) {
  if (block?.index !== index) block = { index, ...JSON.parse(document.getElementById(`image-${index}`).textContent) };
}

function chooseImage(index) {
  state.image = index;
  readBlock(index);
  press(all("[data-image]"), (button) => Number(button.dataset.image) === index);
  setShape(index);
  show();
}

// Sets the size of the box of an image
function setShape(index) {
  const { width, height } = data.images[index];
  const compare = find(".compare");
  compare.style.setProperty("--shape", `${width} / ${height}`);
  // at most one pixel of the image per pixel of the screen, unless it is small, and not higher than the window
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
  all(".panels").forEach((panels) => setView(panels, 0.5, 0.5, zoom));
  press(all("[data-zoom]"), (one) => Number(one.dataset.zoom) === zoom);
}

// Shows a codec's image in an element, or hides the element if there is none. Returns whether there is one.
function showImage(image, codec, name) {
  const index = codec === "original" ? 0 : block.files[state.rate][codec]?.image;
  image.hidden = index === undefined;
  if (index === undefined) return false;
  image.src = `data:image/webp;base64,${block.images[index]}`;
  image.alt = name;
  return true;
}

function fillSelect(select, codec, names) {
  const files = block.files[state.rate];
  select.replaceChildren(...names.map((name) => {
    const note = name === "" || name === "original" || files[name] ? "" : " (no file)";
    return make("option", { value: name, textContent: (titles[name] ?? "Nothing") + note });
  }));
  select.value = codec;
}

const noFile = (codec) => `${titles[codec]} has no file at this rate for this image`;

// The facts about a file. A metric is marked if it is better than those of all other files.
function facts(codec, file, others) {
  const { width, height } = data.images[state.image];
  const row = (name, value, className = "") => [make("dt", { textContent: name }), make("dd", { textContent: value, className })];
  if (codec === "original") return row("Size", `${width}×${height} pixels`);
  if (!file) return [make("dd", { textContent: "No file at this rate for this image.", className: "whole" })];
  const rows = [
    row("Size", `${file.bytes.toLocaleString("en")} bytes`),
    row("Rate", `${file.bpp.toFixed(4)} bpp`),
  ];
  const valueOf = (one, key) => one.metrics[key] ?? Infinity; // null: the PSNR of an exact copy, since JSON has no infinity
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

// Two images with a divider

function showSides() {
  showSide("left", "right");
  showSide("right", "left");
  nameSplit();
}

function showSide(side, otherSide) {
  const files = block.files[state.rate];
  const codec = state[side];
  const name = `${data.images[state.image].name}, ${titles[codec]}`;
  const remark = find(`.none.${side}`);
  remark.hidden = showImage(find(`.side.${side} img`), codec, name);
  remark.textContent = noFile(codec);
  find(`.tag.${side}`).textContent = titles[codec];
  find(`.facts.${side}`).replaceChildren(...facts(codec, files[codec], [files[state[otherSide]]]));
  fillSelect(find(`#${side}`), codec, ["original", ...data.shown]);
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
    event.preventDefault(); // do not select text
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
  for (const side of ["left", "right"]) {
    find(`#${side}`).addEventListener("change", (event) => { state[side] = event.target.value; showSides(); });
  }
  find("#swap").addEventListener("click", () => { [state.left, state.right] = [state.right, state.left]; showSides(); });
}

// Panels that are magnified and moved together. x and y are the centre of the view, relative to the image's size.

function setView(panels, x, y, zoom) {
  const inside = (centre) => Math.min(1 - 0.5 / zoom, Math.max(0.5 / zoom, centre));
  panels.view = { x: inside(x), y: inside(y), zoom };
  panels.style.setProperty("--zoom", zoom);
  panels.style.setProperty("--x", `${100 * (0.5 - panels.view.x * zoom)}%`);
  panels.style.setProperty("--y", `${100 * (0.5 - panels.view.y * zoom)}%`);
  panels.classList.toggle("magnified", zoom > 1);
}

// Magnifies around a point of the window. left and top are relative to the window's size.
function magnifyAt(panels, left, top, factor) {
  const { x, y, zoom } = panels.view;
  const next = Math.min(MAX_ZOOM, Math.max(1, zoom * factor));
  setView(panels, x + (left - 0.5) * (1 / zoom - 1 / next), y + (top - 0.5) * (1 / zoom - 1 / next), next);
  press(all("[data-zoom]"), (one) => Number(one.dataset.zoom) === next);
}

function moveBy(panels, right, down) {
  const { x, y, zoom } = panels.view;
  setView(panels, x - right / zoom, y - down / zoom, zoom);
}

function followPointers(panels) {
  const pointers = new Map();
  const centre = () => {
    const points = [...pointers.values()];
    const x = points.reduce((sum, point) => sum + point.x, 0) / points.length;
    const y = points.reduce((sum, point) => sum + point.y, 0) / points.length;
    return { x, y, radius: points.reduce((sum, point) => sum + Math.hypot(point.x - x, point.y - y), 0) / points.length };
  };
  const relative = (window, point) => {
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
      const before = centre();
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      const after = centre();
      const box = window.getBoundingClientRect();
      moveBy(panels, (after.x - before.x) / box.width, (after.y - before.y) / box.height);
      if (pointers.size > 1 && before.radius) magnifyAt(panels, ...relative(window, after), after.radius / before.radius);
    });
    for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, (event) => pointers.delete(event.pointerId));
    window.addEventListener("dblclick", (event) => {
      magnifyAt(panels, ...relative(window, { x: event.clientX, y: event.clientY }), panels.view.zoom > 1 ? 1 / MAX_ZOOM : 2);
    });
    window.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey && panels.view.zoom === 1) return; // scrolls the page
      event.preventDefault();
      magnifyAt(panels, ...relative(window, { x: event.clientX, y: event.clientY }), 2 ** (-event.deltaY / 300));
    }, { passive: false });
    window.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[event.key];
      const factor = { "+": 2, "=": 2, "-": 0.5, 0: 1 / MAX_ZOOM }[event.key];
      if (!factor && (!step || panels.view.zoom === 1)) return;
      event.preventDefault();
      if (factor) magnifyAt(panels, 0.5, 0.5, factor);
      else moveBy(panels, ...step);
    });
  }
  setView(panels, 0.5, 0.5, 1);
}

// Up to four images in a grid

function showGrid() {
  const files = block.files[state.rate];
  all("#grid .panel").forEach((panel, index) => {
    const codec = state.grid[index] ?? "";
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
  all("#grid select").forEach((select, index) => {
    select.addEventListener("change", () => {
      state.grid[index] = select.value;
      showGrid();
    });
  });
}

// The blind test: which of two images is closer to the original? Names are shown at the end.

let rounds = []; // { image, codecs: [a, b], winner: 0, 1, or undefined if there is no difference }
let round = 0;
let planned = 0; // number of rounds at the start

function shuffled(list) {
  const mixed = [...list];
  for (let index = mixed.length - 1; index > 0; index -= 1) {
    const other = Math.floor(Math.random() * (index + 1));
    [mixed[index], mixed[other]] = [mixed[other], mixed[index]];
  }
  return mixed;
}

function blindCodecs() {
  const chosen = [...new Set(state.grid)].filter((codec) => codec && codec !== "original");
  return chosen.length > 1 ? chosen : data.shown;
}

function startBlind() {
  const codecs = blindCodecs();
  const pairs = codecs.flatMap((one, index) => codecs.slice(index + 1).map((other) => [one, other]));
  const possible = data.images.flatMap(({ images }, image) => {
    const indexes = images[state.rate];
    const differ = (one, other) => indexes[one] && indexes[other] && indexes[one] !== indexes[other];
    return pairs.filter((pair) => differ(...pair)).map((pair) => ({ image, codecs: shuffled(pair) }));
  });
  rounds = shuffled(possible).slice(0, MAX_ROUNDS);
  [round, planned] = [0, rounds.length];
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
  setShape(image);
  ["A", "B"].forEach((letter, index) => {
    showImage(find(`#blind [data-side=${letter}] img`), codecs[index], `Image ${letter}`);
  });
  showImage(find("#blind [data-side=original] img"), "original", "Original");
  find("#round").textContent = `${round + 1} of ${rounds.length}`;
  return undefined;
}

function answer(winner) {
  rounds[round].winner = winner;
  round += 1;
  magnify(1);
  showRound();
}

// For each codec, the number of its rounds, and of those in which it was closer or there was no difference
function tally() {
  const answered = rounds.slice(0, round);
  const codecs = [...new Set(answered.flatMap((one) => one.codecs))];
  const rows = codecs.map((codec) => {
    const own = answered.filter((one) => one.codecs.includes(codec));
    return {
      codec, shown: own.length,
      closer: own.filter((one) => one.codecs[one.winner] === codec).length,
      alike: own.filter((one) => one.winner === undefined).length,
    };
  });
  return rows.sort((a, b) => b.closer / b.shown - a.closer / a.shown);
}

function showTally() {
  const rows = tally();
  find("#tally p").textContent = rows.length
    ? `${round} answers at ${find(`[data-rate='${state.rate}']`).textContent} bits per pixel`
    : planned ? "No answer was given." : "There is nothing to compare: choose two codecs in the grid that have files at this rate.";
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
