/** Calls of tests to the complete decoder. `draw` returns prefixes of a file as PNG files. `tiled` decodes a file twice, in one piece
 * and in tiles of 8 cells, and returns the largest difference. */

import { Decoder } from "./decoder.js";
import { readFile } from "./container.js";
import { readModel } from "./model.js";
import { Network } from "./network.js";
import { readTokens } from "./tokens.js";

const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const decoder = new Decoder();

window.draw = async (text, sizes) => {
  const file = await decoder.open(bytesOf(text)), images = [];
  for (const size of sizes) {
    const url = URL.createObjectURL((await file.draw(size ?? undefined)).png);
    images.push([...new Uint8Array(await (await fetch(url)).arrayBuffer())]);
  }
  return { info: file.info, images };
};

window.tiled = async (text, folder) => {
  const ort = await import("./runtime/ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = new URL("runtime/", location.href).href;
  ort.env.wasm.numThreads = 1;
  const model = readModel(await (await fetch(`${folder}/model.safetensors`)).arrayBuffer());
  const graph = async (name) => new Uint8Array(await (await fetch(`${folder}/${name}`)).arrayBuffer());
  const file = readFile(bytesOf(text)), tokens = readTokens(model, file);
  const pixels = (network) => network.pixels(tokens, file.width, file.height, []);
  const untiled = await pixels(new Network(ort, model, graph)), tiled = await pixels(new Network(ort, model, graph, 0, 8));
  return { values: untiled.length, distance: untiled.reduce((max, value, i) => Math.max(max, Math.abs(value - tiled[i])), 0) };
};
