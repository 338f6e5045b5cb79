/** The viewer's page: opens files, and shows their content, their image, and the image of each prefix. */

import { bytesAllowed } from "./container.js";
import { Decoder, HEADER_MAX, download } from "./decoder.js";
import { TsrError } from "./errors.js";

const element = (id) => document.getElementById(id);
const numbers = new Intl.NumberFormat("en");
const bytesOf = (count) => `${numbers.format(count)} ${count === 1 ? "byte" : "bytes"}`;
const query = new URLSearchParams(location.search);
restrict(query.get("src"), query.get("original")); // before the decoder starts, whose worker has the page's policy
const decoder = new Decoder((received) => setStatus("Loading the decoder", `${(received / 1e6).toFixed(1)} MB`));

let opened = 0; // number of files opened so far: an older one that is still loading is dropped
let file = null; // the OpenFile on the page
let nextSize = null; // bytes of the prefix to draw next; null if none
let drawing = false;
let original = null; // { url, bytes } of the image to compare with

/** From now on, the page fetches from its own site and these addresses only. @param {(string | null)[]} addresses */
function restrict(...addresses) {
  const urls = addresses.filter((address) => address !== null && URL.canParse(address, location)).map((address) => new URL(address, location));
  const sources = urls.map(({ origin, pathname }) => origin + pathname.replace(/[;,]/g, encodeURIComponent)).join(" ");
  const content = `connect-src 'self' ${sources}; img-src 'self' data: blob: ${sources}`;
  document.head.append(Object.assign(document.createElement("meta"), { httpEquiv: "Content-Security-Policy", content }));
}

/** Sets the line below the image. Screen readers skip the progress, which changes many times a second. */
function setStatus(text, progress = "") {
  if (element("status-text").textContent !== text) element("status-text").textContent = text;
  element("progress").textContent = progress;
}

/** Shows why a file has no image. @param {TsrError} error @param {string} name of the file */
function showProblem(error, name) {
  if (!(error instanceof TsrError)) throw error;
  closeFile();
  element("view").hidden = element("panel").hidden = element("save").hidden = true;
  element("empty").hidden = true;
  element("problem").hidden = false;
  element("problem").replaceChildren(Object.assign(document.createElement("b"), { textContent: name }), error.message);
  setStatus("");
}

function closeFile() {
  file?.close();
  file = nextSize = null;
}

/** Opens a file while it is downloaded. @param {string} name @param {AsyncIterable<import("./decoder.js").Download>} chunks */
async function open(name, chunks) {
  const turn = ++opened;
  closeFile();
  element("problem").hidden = true;
  let current = null;
  try {
    for await (const state of chunks) {
      if (turn !== opened) break;
      const more = state.bytes.length !== current?.info.bytes; // if false, only the news that the download is complete
      if (!current) showDetail((current = await decoder.open(state.bytes)).info.detail);
      else if (more) await current.update(state.bytes);
      if (turn !== opened) break;
      file = current;
      describe(name, state);
      if (more) await draw(state.bytes.length);
    }
  } catch (error) {
    if (turn === opened) showProblem(error, name);
  }
  if (turn !== opened) current?.close();
}

/** Fills the panel with facts about the file. */
function describe(name, { bytes, total, done }) {
  const { info } = file;
  const size = element("size");
  size.min = info.headerBytes;
  size.max = done ? bytes.length : Math.max(total ?? info.size ?? 0, bytes.length);
  size.value = bytes.length;
  size.disabled = !done;
  element("name").textContent = name;
  document.title = `${name} – Tessera viewer`;
  const cut = done && info.state === "cut";
  element("notice").hidden = !cut;
  if (cut) {
    const available = info.tokens === info.length ? "Its image is complete, and sections after it are missing." : `${numbers.format(info.tokens)} of ${numbers.format(info.length)} tokens are available.`;
    element("notice").textContent = `The file is cut short. ${available}`;
  }
  const facts = [
    ["Size", `${numbers.format(info.width)} × ${numbers.format(info.height)}`],
    ["File", `${bytesOf(bytes.length)}${done ? "" : " so far"}`],
    ["Rate", `${rate(bytes.length, info)} bits per pixel`],
    ["Tokens", `${numbers.format(Math.round(info.blockTokens))} of ${numbers.format(info.blockTokensMax)} per block`],
    ["Model", `${info.model} (${info.streamId})`],
    ["Colours", `${info.grey ? "grey, " : ""}${info.space}`],
    ...(info.transparent ? [["Alpha", "partly transparent"]] : []),
    ["Bytes", `header ${info.headerBytes}, tokens ${numbers.format(info.payloadBytes)}${info.sections.map(([label, count]) => `, ${label} ${numbers.format(count)}`).join("")}`],
    ...info.notes,
  ];
  element("facts").replaceChildren(...facts.flatMap(([term, text]) => [
    Object.assign(document.createElement("dt"), { textContent: term }),
    Object.assign(document.createElement("dd"), { textContent: text }),
  ]));
  element("image").alt = info.notes.find(([label]) => label === "Description")?.[1] ?? `The image in ${name}`;
  element("panel").hidden = false;
  showSize(bytes.length);
}

const rate = (bytes, { width, height }) => ((8 * bytes) / (width * height)).toPrecision(3);

function showSize(size) {
  element("shown").textContent = bytesOf(size);
  element("size").setAttribute("aria-valuetext", bytesOf(size));
}

/** Sets the strength of texture. @param {number | null} detail from 0 to 1, or null for a model without texture */
function showDetail(detail) {
  element("texture").hidden = detail === null;
  element("detail").value = Math.round(100 * (detail ?? 0));
  element("strength").textContent = `${element("detail").value} %`;
}

/** Draws a prefix, and then the last one that was requested in the meantime. */
async function draw(size) {
  if (!file) return;
  nextSize = size;
  if (drawing) return;
  drawing = true;
  try {
    while (nextSize !== null) {
      const current = nextSize, source = file;
      nextSize = null;
      setStatus("Drawing…");
      let drawn;
      try {
        drawn = await source.draw(current, source.info.detail === null ? undefined : Number(element("detail").value) / 100);
      } catch (error) {
        if (source === file) showProblem(error, element("name").textContent);
        continue;
      }
      if (source === file) await show(drawn, current, source.info);
    }
  } finally {
    drawing = false;
  }
}

async function show({ png, tokens, blockTokens }, size, info) {
  const url = URL.createObjectURL(png), image = element("image"), before = image.src;
  image.src = url;
  await image.decode();
  URL.revokeObjectURL(before);
  Object.assign(image, { width: info.width, height: info.height });
  const save = element("save");
  save.href = url;
  save.download = element("name").textContent.replace(/(\.tsr)?$/i, ".png");
  save.hidden = element("view").hidden = false;
  element("empty").hidden = true;
  element("view").dataset.size = size;
  element("view").dataset.tokens = tokens;
  setStatus(`${bytesOf(size)}: ${rate(size, info)} bits per pixel, ${numbers.format(Math.round(blockTokens))} tokens per block`);
  compare();
}

/** Lays the original over the image if both are available. */
function compare() {
  const both = original !== null && file !== null;
  for (const id of ["original", "edge", "wipe", "tessera-tag", "original-tag"]) element(id).hidden = !both;
  if (!both) return;
  if (element("original").getAttribute("src") !== original.url) element("original").src = original.url;
  element("tessera-tag").textContent = `Tessera, ${kilobytes(Number(element("size").value))}`;
  element("original-tag").textContent = original.bytes ? `original, ${kilobytes(original.bytes)}` : "original";
}

const kilobytes = (bytes) => (bytes < 1000 ? bytesOf(bytes) : `${(bytes / 1000).toFixed(bytes < 1e5 ? 1 : 0)} kB`);

/** Opens dropped or chosen files: a .tsr file, and an image of another format as the original. @param {Iterable<File>} files */
function openFiles(files) {
  const images = [...files], tsr = images.find(({ name, type }) => /\.tsr$/i.test(name) || !type.startsWith("image/"));
  const other = images.find((image) => image !== tsr);
  if (other) {
    if (original?.url.startsWith("blob:")) URL.revokeObjectURL(original.url);
    original = { url: URL.createObjectURL(other), bytes: other.size };
    if (!tsr && !file) setStatus("That is the original. Now open its .tsr file.");
  } else if (tsr) {
    original = null;
  }
  compare();
  if (tsr) open(tsr.name, read(tsr));
}

async function* read(blob) {
  const sizeMax = bytesAllowed(new Uint8Array(await blob.slice(0, HEADER_MAX).arrayBuffer())); // before it is read into memory
  if (blob.size > sizeMax) throw new TsrError("damaged", "The file has bytes after its end.");
  yield { bytes: new Uint8Array(await blob.arrayBuffer()), total: blob.size, done: true };
}

element("files").addEventListener("change", ({ target }) => {
  openFiles(target.files);
  target.value = "";
});
element("size").addEventListener("input", ({ target }) => {
  showSize(Number(target.value));
  draw(Number(target.value));
});
element("detail").addEventListener("input", ({ target }) => {
  showDetail(Number(target.value) / 100);
  draw(Number(element("size").value));
});
element("wipe").addEventListener("input", ({ target }) => {
  element("frame").style.setProperty("--wipe", `${target.value}%`);
  target.setAttribute("aria-valuetext", `${Math.round(target.value)} %`);
});
element("original").addEventListener("error", () => {
  original = null;
  compare();
  setStatus("This browser cannot show the original.");
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
for (const name of ["dragleave", "drop"]) addEventListener(name, () => document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) openFiles(event.dataTransfer.files);
});

if (query.has("original")) original = { url: query.get("original"), bytes: 0 };
if (query.has("src")) {
  const url = query.get("src"), name = url.split(/[?#]/)[0].split("/").pop() || url;
  element("empty").hidden = true;
  setStatus("Loading");
  open(name, download(url));
}
