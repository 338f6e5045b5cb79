/** Calls of tests to the decoder in docs/viewer/. `read` returns the tokens of a file, `firstOf` its first ones, and `kinds` its state
 * or the kind of its error. `prefixes` counts the certain tokens of each prefix in two ways: by reading the prefix, and from the ends
 * of the complete file's tokens. `unpacked` returns the contents of LZMA2 streams, null for damaged ones. */

import { readFile } from "./viewer/container.js";
import { unpack } from "./viewer/lzma2.js";
import { readModel } from "./viewer/model.js";
import { firstTokens, readTokens, stateOf } from "./viewer/tokens.js";

const models = {};
const load = async (name) => (models[name] ??= readModel(await (await fetch(name)).arrayBuffer()));
const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

function tokensOf(model, data) {
  const file = readFile(data);
  const tokens = readTokens(model, file);
  return { file, tokens, state: stateOf(model, file, tokens) };
}

const toLists = (grids) => grids.map(({ digits, known }) => [[...digits], [...known]]);

window.read = async (name, text) => {
  const { tokens, state } = tokensOf(await load(name), bytesOf(text));
  return { state, grids: toLists(tokens.grids) };
};

window.firstOf = async (name, text, length) => {
  const { tokens } = tokensOf(await load(name), bytesOf(text));
  return toLists(firstTokens(tokens, length).grids);
};

window.prefixes = async (name, text) => {
  const model = await load(name), data = bytesOf(text);
  const { file, tokens } = tokensOf(model, data);
  const byReading = [], byEnds = [];
  for (let size = file.headerBytes; size < data.length; size++) {
    byReading.push(tokensOf(model, data.subarray(0, size)).tokens.ends.length);
    const payloadBytes = size - file.headerBytes; // a complete payload makes all tokens certain: zeros follow it
    byEnds.push(tokens.ends.filter((end) => end <= payloadBytes || payloadBytes >= file.payload.length).length);
  }
  return { headerBytes: file.headerBytes, byReading, byEnds };
};

window.kinds = async (name, texts) => {
  const model = await load(name);
  return texts.map((text) => {
    try {
      const { tokens, state } = tokensOf(model, bytesOf(text));
      return [state, tokens.ends.length];
    } catch (error) {
      if (error.name !== "TsrError") throw error;
      return [error.kind, 0];
    }
  });
};

window.unpacked = (texts, maxSize) =>
  texts.map((text) => {
    try {
      return btoa(String.fromCharCode(...unpack(bytesOf(text), maxSize, "content")));
    } catch (error) {
      if (error.name !== "TsrError") throw error;
      return null;
    }
  });
