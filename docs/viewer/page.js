/** The viewer's page: opens files, shows what they hold, and what each prefix of them looks like. */

import { Decoder, download } from "./decoder.js";
import { TsrError } from "./errors.js";

const part = (id) => document.getElementById(id);
const numbers = new Intl.NumberFormat("en");
const bytesOf = (count) => `${numbers.format(count)} ${count === 1 ? "byte" : "bytes"}`;
const decoder = new Decoder((received) => say("Loading the decoder", `${(received / 1e6).toFixed(1)} MB`));

let opening = 0; // counts what was opened, so that what was asked for before is dropped
let file = null; // the OpenFile on the page
let wanted = null; // bytes of the prefix to draw next; null where nothing is
let drawing = false;
let original = null; // { url, bytes } of the image to compare with

/** One line below the image. The amount is not read aloud: it changes many times a second. */
function say(text, amount = "") {
  if (part("said").textContent !== text) part("said").textContent = text;
  part("amount").textContent = amount;
}

/** Says why there is nothing to see. @param {TsrError} error @param {string} name of the file */
function refuse(error, name) {
  if (!(error instanceof TsrError)) throw error;
  leave();
  part("view").hidden = part("panel").hidden = part("save").hidden = true;
  part("empty").hidden = true;
  part("problem").hidden = false;
  part("problem").replaceChildren(Object.assign(document.createElement("b"), { textContent: name }), error.message);
  say("");
}

function leave() {
  file?.close();
  file = wanted = null;
}

/** Opens a file as it comes in. @param {string} name @param {AsyncIterable<import("./decoder.js").Arrived>} chunks */
async function open(name, chunks) {
  const turn = ++opening;
  leave();
  part("problem").hidden = true;
  let mine = null;
  try {
    for await (const arrived of chunks) {
      if (turn !== opening) break;
      const more = arrived.bytes.length !== mine?.info.bytes; // or else only the news that this was all
      if (!mine) mine = await decoder.open(arrived.bytes);
      else if (more) await mine.update(arrived.bytes);
      if (turn !== opening) break;
      file = mine;
      describe(name, arrived);
      if (more) await draw(arrived.bytes.length);
    }
  } catch (error) {
    if (turn === opening) refuse(error, name);
  }
  if (turn !== opening) mine?.close();
}

/** Says what is in the file. */
function describe(name, { bytes, total, done }) {
  const { info } = file;
  const size = part("size");
  size.min = info.headerBytes;
  size.max = done ? bytes.length : Math.max(total ?? info.size ?? 0, bytes.length);
  size.value = bytes.length;
  size.disabled = !done;
  part("name").textContent = name;
  document.title = `${name} – Tessera viewer`;
  const cut = done && info.state === "cut";
  part("notice").hidden = !cut;
  if (cut) {
    const missing = info.tokens === info.length ? "Its image is there, but not all that follows it." : `${numbers.format(info.tokens)} of ${numbers.format(info.length)} tokens are there, and this is what they show.`;
    part("notice").textContent = `The file is cut short. ${missing}`;
  }
  const facts = [
    ["Size", `${numbers.format(info.width)} × ${numbers.format(info.height)}`],
    ["File", `${bytesOf(bytes.length)}${done ? "" : " so far"}`],
    ["Rate", `${rate(bytes.length, info)} bits per pixel`],
    ["Tokens", `${numbers.format(Math.round(info.blockTokens))} of ${numbers.format(info.blockTokensMost)} per block`],
    ["Model", `${info.model} (${info.streamId})`],
    ["Colours", `${info.grey ? "grey, " : ""}${info.space}`],
    ...(info.transparent ? [["Alpha", "partly transparent"]] : []),
    ["Backend", `header ${info.headerBytes}, tokens ${numbers.format(info.payloadBytes)}${info.sections.map(([label, count]) => `, ${label} ${numbers.format(count)}`).join("")} bytes`],
    ...info.notes,
  ];
  part("facts").replaceChildren(...facts.flatMap(([term, text]) => [
    Object.assign(document.createElement("dt"), { textContent: term }),
    Object.assign(document.createElement("dd"), { textContent: text }),
  ]));
  part("image").alt = info.notes.find(([label]) => label === "Description")?.[1] ?? `The image in ${name}`;
  part("panel").hidden = false;
  showSize(bytes.length);
}

const rate = (bytes, { width, height }) => ((8 * bytes) / (width * height)).toPrecision(3);

function showSize(size) {
  part("shown").textContent = bytesOf(size);
  part("size").setAttribute("aria-valuetext", bytesOf(size));
}

/** Draws a prefix, and then the last one that was asked for meanwhile. */
async function draw(size) {
  if (!file) return;
  wanted = size;
  if (drawing) return;
  drawing = true;
  try {
    while (wanted !== null) {
      const now = wanted, mine = file;
      wanted = null;
      say("Drawing…");
      let drawn;
      try {
        drawn = await mine.draw(now);
      } catch (error) {
        if (mine === file) refuse(error, part("name").textContent);
        continue;
      }
      if (mine === file) await show(drawn, now, mine.info);
    }
  } finally {
    drawing = false;
  }
}

async function show({ png, tokens, blockTokens }, size, info) {
  const url = URL.createObjectURL(png), image = part("image"), before = image.src;
  image.src = url;
  await image.decode();
  URL.revokeObjectURL(before);
  Object.assign(image, { width: info.width, height: info.height });
  const save = part("save");
  save.href = url;
  save.download = part("name").textContent.replace(/(\.tsr)?$/i, ".png");
  save.hidden = part("view").hidden = false;
  part("empty").hidden = true;
  part("view").dataset.size = size;
  part("view").dataset.tokens = tokens;
  say(`${bytesOf(size)}: ${rate(size, info)} bits per pixel, ${numbers.format(Math.round(blockTokens))} tokens per block`);
  compare();
}

/** Lays the original over the image, where both are there. */
function compare() {
  const there = original !== null && file !== null;
  for (const id of ["original", "edge", "wipe", "mine", "theirs"]) part(id).hidden = !there;
  if (!there) return;
  if (part("original").getAttribute("src") !== original.url) part("original").src = original.url;
  part("mine").textContent = `Tessera, ${kilobytes(Number(part("size").value))}`;
  part("theirs").textContent = original.bytes ? `original, ${kilobytes(original.bytes)}` : "original";
}

const kilobytes = (bytes) => (bytes < 1000 ? bytesOf(bytes) : `${(bytes / 1000).toFixed(bytes < 1e5 ? 1 : 0)} kB`);

/** Opens what was dropped or chosen: .tsr files, and images of other kinds as the original. @param {Iterable<File>} given */
function take(given) {
  const images = [...given], tsr = images.find(({ name, type }) => /\.tsr$/i.test(name) || !type.startsWith("image/"));
  const other = images.find((image) => image !== tsr);
  if (other) {
    if (original?.url.startsWith("blob:")) URL.revokeObjectURL(original.url);
    original = { url: URL.createObjectURL(other), bytes: other.size };
    if (!tsr && !file) say("That is the original. Now open its .tsr file.");
  } else if (tsr) {
    original = null;
  }
  compare();
  if (tsr) open(tsr.name, whole(tsr));
}

async function* whole(blob) {
  yield { bytes: new Uint8Array(await blob.arrayBuffer()), total: blob.size, done: true };
}

part("files").addEventListener("change", ({ target }) => {
  take(target.files);
  target.value = "";
});
part("size").addEventListener("input", ({ target }) => {
  showSize(Number(target.value));
  draw(Number(target.value));
});
part("wipe").addEventListener("input", ({ target }) => {
  part("frame").style.setProperty("--wipe", `${target.value}%`);
  target.setAttribute("aria-valuetext", `${Math.round(target.value)} %`);
});
part("original").addEventListener("error", () => {
  original = null;
  compare();
  say("This browser cannot show the original.");
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
for (const name of ["dragleave", "drop"]) addEventListener(name, () => document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) take(event.dataTransfer.files);
});

const given = new URLSearchParams(location.search);
if (given.has("original")) original = { url: given.get("original"), bytes: 0 };
if (given.has("src")) {
  const url = given.get("src"), name = url.split(/[?#]/)[0].split("/").pop() || url;
  part("empty").hidden = true;
  say("Loading");
  open(name, download(url));
}
