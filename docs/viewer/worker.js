/** Decodes in the background. The page talks to it through `Decoder` in decoder.js; each call is answered by one message. */

import { COLOURED, EXIF, GREY, ICC, SPACES, XMP, readFile } from "./container.js";
import { TsrError } from "./errors.js";
import { extrasOf, notesOf } from "./extras.js";
import { readModel } from "./model.js";
import { Network } from "./network.js";
import { encodePng } from "./png.js";
import { blockTokensOf, firstTokens, readTokens, stateOf } from "./tokens.js";

const PIXELS_MAX = 40e6; // what a browser's memory holds without doubt
const SECTION_NAMES = ["", "alpha", "colour profile", "EXIF", "XMP"];
const THREADS_MAX = 4;

let folder; // where models/ and runtime/ lie
let runtime; // promise of ONNX Runtime's module
let index; // promise of the models that are there: names by stream id
const models = new Map(); // promises of { model, network, name }, by stream id
const files = new Map(); // opened files, by handle
let received = 0; // bytes of models, for the progress that people see

/** Fetches a file of this site. */
async function fetched(path) {
  const response = await fetch(new URL(path, folder));
  if (!response.ok) throw new TsrError("model", `A part of the decoder is missing on this site (${path}: ${response.status}).`);
  const parts = [];
  const reader = response.body.getReader();
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    parts.push(value);
    postMessage({ received: (received += value.length) });
  }
  return new Blob(parts).arrayBuffer();
}

async function modelOf(streamId) {
  index ??= fetched("models/index.json").then((buffer) => JSON.parse(new TextDecoder().decode(buffer)));
  const names = await index;
  if (!Object.hasOwn(names, streamId)) {
    const known = Object.entries(names).map(([id, name]) => `${name} (${id})`).join(", ");
    throw new TsrError("model", `The file was made with another model (stream id ${streamId}). This page has ${known}.`);
  }
  if (!models.has(streamId)) models.set(streamId, loaded(streamId, names[streamId]));
  return models.get(streamId);
}

async function loaded(streamId, name) {
  const model = readModel(await fetched(`models/${streamId}/model.safetensors`));
  const graphs = new Map(); // all on their way at once, before the first is asked for
  const graph = (file) => {
    if (!graphs.has(file)) graphs.set(file, fetched(`models/${streamId}/${file}`).then((buffer) => new Uint8Array(buffer)));
    return graphs.get(file);
  };
  const network = async () => {
    Object.keys(model.plain.graphs).filter((file) => !/encoder|analyse/.test(file)).forEach(graph);
    return new Network(await (runtime ??= startRuntime()), model, graph);
  };
  return { model, name, network: once(network) };
}

async function startRuntime() {
  const ort = await import(new URL("runtime/ort.wasm.min.mjs", folder).href);
  ort.env.wasm.wasmPaths = new URL("runtime/", folder).href;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(THREADS_MAX, navigator.hardwareConcurrency) : 1;
  return ort;
}

function once(make) {
  let made;
  return () => (made ??= make());
}

const calls = {
  /** Reads a file, or more of one that was opened before. Answers with what there is to say of it. */
  async open({ bytes, handle }) {
    const file = readFile(bytes);
    if (file.width * file.height > PIXELS_MAX) {
      const [has, most] = [file.width * file.height, PIXELS_MAX].map((pixels) => Math.round(pixels / 1e6));
      throw new TsrError("large", `The image has ${has} megapixels, and this page opens up to ${most}.`);
    }
    const { model, network, name } = await modelOf(file.streamId);
    const tokens = readTokens(model, file);
    const state = stateOf(model, file, tokens);
    const extras = extrasOf(file);
    files.set(handle, { file, tokens, model, network, extras, states: files.get(handle)?.states ?? [] });
    return {
      width: file.width, height: file.height, bytes: bytes.length, headerBytes: file.bytes, payloadBytes: file.payload.length,
      size: file.payloadBytes === null ? null : file.bytes + file.payloadBytes + file.sectionBytes,
      sections: [...file.sections].map(([type, content]) => [SECTION_NAMES[type] ?? `type ${type}`, content.length]),
      tokens: tokens.ends.length, length: file.length, ...perBlock(model, file, tokens.ends.length),
      model: name, streamId: file.streamId, state,
      grey: file.greyness !== COLOURED, space: file.sections.has(ICC) ? "its own profile" : SPACES[file.space],
      transparent: file.transparent, notes: notesOf(file.sections.has(EXIF) ? extras.exif : null), xmp: file.sections.has(XMP),
    };
  },

  /** The image that the first `size` bytes of an opened file hold, as a PNG file. */
  async draw({ handle, size }) {
    const { file, tokens, model, network, extras, states } = files.get(handle);
    const within = size - file.bytes;
    let count = tokens.ends.length;
    if (within < file.payload.length) count = upperBound(tokens.ends, within);
    const { width, height, greyness } = file;
    const rgb = await (await network()).pixels(firstTokens(tokens, count), width, height, states);
    const channels = (greyness === GREY ? 1 : 3) + (extras.alpha ? 1 : 0);
    const png = await encodePng(arranged(rgb, greyness, extras.alpha, channels), width, height, channels, extras);
    return { png, tokens: count, ...perBlock(model, file, count) };
  },

  close({ handle }) {
    files.delete(handle);
  },
};

function perBlock({ levels }, { width, height }, tokens) {
  const most = levels.reduce((sum, { side, part }) => sum + side ** 2 / (part === 0 ? 1 : 2), 0);
  return { blockTokens: blockTokensOf(levels, width, height, tokens), blockTokensMost: most };
}

/** How many of these rising numbers are at most `value`. */
function upperBound(numbers, value) {
  let low = 0, high = numbers.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** RGB as the network makes it -> the channels of the image: without a trace of colour where it had none, and with alpha. */
function arranged(rgb, greyness, alpha, channels) {
  if (greyness === COLOURED && !alpha) return rgb;
  const out = new Uint8Array((rgb.length / 3) * channels);
  for (let from = 0, to = 0, pixel = 0; from < rgb.length; from += 3, pixel++) {
    const mean = Math.floor((rgb[from] + rgb[from + 1] + rgb[from + 2] + 1) / 3);
    for (let c = 0; c < (greyness === GREY ? 1 : 3); c++) out[to++] = greyness === COLOURED ? rgb[from + c] : mean;
    if (alpha) out[to++] = alpha[pixel];
  }
  return out;
}

self.addEventListener("message", async ({ data: { id, call, base, ...given } }) => {
  folder ??= base;
  try {
    postMessage({ id, result: await calls[call](given) });
  } catch (error) {
    const refused = error instanceof TsrError;
    if (!refused) console.error(error);
    postMessage({ id, error: { kind: refused ? error.kind : "failed", message: refused ? error.message : `Decoding failed: ${error.message}` } });
  }
});
