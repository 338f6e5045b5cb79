/** What tests ask of the decoder in docs/viewer/: `read` gives a file's tokens, `kinds` what it says of damaged ones, and
 * `prefixes` how many tokens are certain of each prefix: as reading it alone says, and as the whole file's tokens foretell. * `unpacked` gives the contents of LZMA2 streams, null for a damaged one. */

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

const plain = (grids) => grids.map(({ digits, known }) => [[...digits], [...known]]);

window.read = async (name, text) => {
  const { tokens, state } = tokensOf(await load(name), bytesOf(text));
  return { state, grids: plain(tokens.grids) };
};

window.firstOf = async (name, text, length) => {
  const { tokens } = tokensOf(await load(name), bytesOf(text));
  return plain(firstTokens(tokens, length).grids);
};

window.prefixes = async (name, text) => {
  const model = await load(name), data = bytesOf(text);
  const { file, tokens } = tokensOf(model, data);
  const alone = [], foretold = [];
  for (let size = file.bytes; size < data.length; size++) {
    alone.push(tokensOf(model, data.subarray(0, size)).tokens.ends.length);
    const within = size - file.bytes; // a whole payload makes all tokens certain: zeros follow it
    foretold.push(tokens.ends.filter((end) => end <= within || within >= file.payload.length).length);
  }
  return { bytes: file.bytes, alone, foretold };
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

window.unpacked = (texts, most) =>
  texts.map((text) => {
    try {
      return btoa(String.fromCharCode(...unpack(bytesOf(text), most, "content")));
    } catch (error) {
      if (error.name !== "TsrError") throw error;
      return null;
    }
  });
