/** Decodes in the background. Pages call it through `Decoder` in decoder.js. Each call has one message as its answer. */

import { COLOURED, EXIF, GREY, ICC, SPACES, XMP, bytesAllowed, readFile } from "./container.js";
import { TsrError } from "./errors.js";
import { extrasOf, notesOf } from "./extras.js";
import { readModel } from "./model.js";
import { Network } from "./network.js";
import { encodePng } from "./png.js";
import { blockTokensOf, firstTokens, readTokens, stateOf } from "./tokens.js";

const SECTION_NAMES = ["", "alpha", "colour profile", "EXIF", "XMP"];
const THREADS_MAX = 4;

let folder; // address of the folder with models/ and runtime/
let runtime; // promise of ONNX Runtime's module
let index; // promise of the names of the available models, by stream id
const models = new Map(); // promises of { model, network, name }, by stream id
const files = new Map(); // opened files, by handle
let received = 0; // bytes of models, for the progress display

/** Fetches a file of this site. */
async function fetched(path) {
  const response = await fetch(new URL(path, folder));
  if (!response.ok) throw new TsrError("model", `The decoder on this site is incomplete (${path}: ${response.status}).`);
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
  const graphs = new Map(); // requested all at once, before the first is used
  const graph = (file) => {
    if (!graphs.has(file)) graphs.set(file, fetched(`models/${streamId}/${file}`).then((buffer) => new Uint8Array(buffer)));
    return graphs.get(file);
  };
  const network = async () => {
    Object.keys(model.metadata.graphs).filter((file) => !unused(model).test(file)).forEach(graph);
    return new Network(await (runtime ??= startRuntime()), model, graph);
  };
  return { model, name, network: once(network) };
}

/** The graphs that decoding does not need. */
const unused = ({ hasTexture }) => (hasTexture ? /encoder|analyse|decoder.pixels/ : /encoder|analyse/);

async function startRuntime() {
  const ort = await import(new URL("runtime/ort.wasm.min.mjs", folder).href);
  ort.env.wasm.wasmPaths = new URL("runtime/", folder).href;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(THREADS_MAX, navigator.hardwareConcurrency) : 1;
  return ort;
}

function once(compute) {
  let result;
  return () => (result ??= compute());
}

const calls = {
  /** Reads a file, or more bytes of an open file, and returns a description. */
  async open({ bytes, handle }) {
    bytesAllowed(bytes);
    const file = readFile(bytes);
    const { model, network, name } = await modelOf(file.streamId);
    const tokens = readTokens(model, file);
    const state = stateOf(model, file, tokens);
    const extras = extrasOf(file);
    files.set(handle, { file, tokens, model, network, extras, states: files.get(handle)?.states ?? [] });
    return {
      width: file.width, height: file.height, bytes: bytes.length, headerBytes: file.headerBytes, payloadBytes: file.payload.length,
      size: file.payloadBytes === null ? null : file.headerBytes + file.payloadBytes + file.sectionBytes,
      sections: [...file.sections].map(([type, content]) => [SECTION_NAMES[type] ?? `type ${type}`, content.length]),
      tokens: tokens.ends.length, length: file.length, ...perBlock(model, file, tokens.ends.length),
      model: name, streamId: file.streamId, state, detail: model.hasTexture ? model.detail : null,
      grey: file.greyness !== COLOURED, space: file.sections.has(ICC) ? "its own profile" : SPACES[file.space],
      transparent: file.transparent, notes: notesOf(file.sections.has(EXIF) ? extras.exif : null), xmp: file.sections.has(XMP),
    };
  },

  /** The image in the first `size` bytes of an open file, as a PNG file. `detail` is the strength of texture. */
  async draw({ handle, size, detail }) {
    const { file, tokens, model, network, extras, states } = files.get(handle);
    const payloadBytes = size - file.headerBytes;
    let count = tokens.ends.length;
    if (payloadBytes < file.payload.length) count = upperBound(tokens.ends, payloadBytes);
    const { width, height, greyness } = file;
    const rgb = await (await network()).pixels(firstTokens(tokens, count), width, height, states, detail);
    const channels = (greyness === GREY ? 1 : 3) + (extras.alpha ? 1 : 0);
    const png = await encodePng(toChannels(rgb, greyness, extras.alpha, channels), width, height, channels, extras);
    return { png, tokens: count, ...perBlock(model, file, count) };
  },

  close({ handle }) {
    files.delete(handle);
  },
};

function perBlock({ levels }, { width, height }, tokens) {
  const blockTokensMax = levels.reduce((sum, { side, part }) => sum + side ** 2 / (part === 0 ? 1 : 2), 0);
  return { blockTokens: blockTokensOf(levels, width, height, tokens), blockTokensMax };
}

/** Count of the numbers, in ascending order, that are at most `value`. */
function upperBound(numbers, value) {
  let low = 0, high = numbers.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** RGB from the network -> the channels of the image: exactly grey if the image is, and with alpha. */
function toChannels(rgb, greyness, alpha, channels) {
  if (greyness === COLOURED && !alpha) return rgb;
  const out = new Uint8Array((rgb.length / 3) * channels);
  for (let from = 0, to = 0, pixel = 0; from < rgb.length; from += 3, pixel++) {
    const mean = Math.floor((rgb[from] + rgb[from + 1] + rgb[from + 2] + 1) / 3);
    for (let c = 0; c < (greyness === GREY ? 1 : 3); c++) out[to++] = greyness === COLOURED ? rgb[from + c] : mean;
    if (alpha) out[to++] = alpha[pixel];
  }
  return out;
}

self.addEventListener("message", async ({ data: { id, call, base, ...options } }) => {
  folder ??= base;
  try {
    postMessage({ id, result: await calls[call](options) });
  } catch (error) {
    const expected = error instanceof TsrError;
    if (!expected) console.error(error);
    postMessage({ id, error: expected ? { kind: error.kind, message: error.message } : { kind: "failed", message: `Decoding failed: ${error.message}` } });
  }
});
