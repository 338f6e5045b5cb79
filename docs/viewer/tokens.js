/** The tokens of an image: where they stand, in which order, and how they are read. FORMAT.md, sections 3, 4 and 6. */

import { RangeDecoder } from "./coder.js";
import { TsrError } from "./errors.js";
import { classesOf } from "./prior.js";

const CELL = 16, BLOCK_CELLS = 16;
const WORD_BYTES = 4; // of the range coder: trailing zeros are not stored

/** @typedef {{ rows: number, columns: number, digits: Int8Array, known: Uint8Array, order: Uint32Array }} Grid
 * Tokens of a level. `digits` has plane after plane, zeros where a token is not known; `order` has the places of the tokens that
 * were read, as they were sent. */
/** @typedef {{ grids: Grid[], ends: Uint32Array }} Tokens
 * `ends` says of each token that was read how many bytes of the payload make it certain. */

/** Rows and columns of the coded tokens of a level. @returns {[number, number]} */
export function gridOf(level, width, height) {
  return [height, width].map((side) => Math.ceil(Math.ceil(side / CELL) / (BLOCK_CELLS / level.side)));
}

/** How many tokens of a grid belong to a part of it. */
export function countOf(part, rows, columns) {
  return part === 0 ? rows * columns : (rows * columns + (part === 1 ? 1 : 0)) >> 1;
}

/** How many tokens an image has. @param {import("./model.js").Level[]} levels */
export function tokensOf(levels, width, height) {
  return levels.reduce((sum, level) => sum + countOf(level.part, ...gridOf(level, width, height)), 0);
}

/** Tokens per block of 256x256 pixels, the unit in which people give a length; levels count as far as they are known.
 * @param {import("./model.js").Level[]} levels */
export function blockTokensOf(levels, width, height, length) {
  let total = 0;
  for (const level of levels) {
    const count = countOf(level.part, ...gridOf(level, width, height)), kept = Math.min(count, length);
    total += (level.side ** 2 / (level.part === 0 ? 1 : 2)) * (count ? kept / count : 1);
    if (kept < count) break;
    length -= kept;
  }
  return total;
}

/** Places of the tokens of a level in the order they are sent: dearest first, then by their spread keys.
 * @param {Float64Array} costs by class @param {Uint8Array} classes (places, digits) @returns {Uint32Array} */
function orderOf(costs, classes, digits, part, rows, columns) {
  const places = [], cost = new Float64Array(rows * columns), key = new Float64Array(rows * columns);
  const bits = Math.max(1, 32 - Math.clz32(Math.max(rows, columns) - 1));
  for (let y = 0, place = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++, place++) {
      if (part !== 0 && (y + x) % 2 !== part - 1) continue;
      places.push(place);
      for (let d = 0; d < digits; d++) cost[place] += costs[classes[place * digits + d]];
      for (let bit = 0; bit < bits; bit++) key[place] = key[place] * 4 + ((y >> bit) & 1) * 2 + ((x >> bit) & 1);
    }
  }
  return Uint32Array.from(places).sort((a, b) => cost[b] - cost[a] || key[a] - key[b]);
}

/**
 * The tokens of a file. Where its payload may have been cut, those that are certain.
 * @param {import("./model.js").Model} model
 * @param {import("./container.js").File} file
 * @returns {Tokens}
 */
export function readTokens(model, file) {
  const { levels, priors } = model, { width, height, payload, length, payloadWhole } = file;
  const most = tokensOf(levels, width, height);
  if (length > most) throw new TsrError("damaged", `The header says ${length} tokens, and such an image has ${most}.`);
  const decoder = new RangeDecoder(payload);
  const grids = [], ends = new Uint32Array(length);
  let read = 0, going = true;
  levels.forEach((level, index) => {
    const [rows, columns] = gridOf(level, width, height), places = rows * columns;
    const grid = { rows, columns, digits: new Int8Array(level.digits * places), known: new Uint8Array(places), order: new Uint32Array() };
    grids.push(grid);
    if (!going || read === length) return;
    const { cumulative, costs, symbols } = priors[index];
    const classes = classesOf(model, index, grids, rows, columns);
    const order = orderOf(costs, classes, level.digits, level.part, rows, columns).subarray(0, length - read);
    const token = new Int8Array(level.digits);
    let count = 0;
    for (; going && count < order.length; count++) {
      const place = order[count];
      for (let d = 0; going && d < level.digits; d++) {
        const symbol = decoder.symbol(cumulative, classes[place * level.digits + d] * (symbols + 1), symbols);
        token[d] = symbol - level.limit;
        going = symbol >= 0;
      }
      if (!going && payloadWhole) throw new TsrError("damaged", "These bytes stand for no tokens.");
      const end = going ? decoder.certain() : 0;
      if (!payloadWhole && end > payload.length) going = false;
      if (!going) break;
      for (let d = 0; d < level.digits; d++) grid.digits[d * places + place] = token[d];
      grid.known[place] = 1;
      ends[read++] = end;
    }
    grid.order = order.subarray(0, count);
  });
  return { grids, ends: ends.subarray(0, read) };
}

/** The first so many of these tokens. @param {Tokens} tokens @returns {Tokens} */
export function firstTokens({ grids, ends }, length) {
  let left = length;
  const kept = grids.map(({ rows, columns, digits, order }) => {
    const places = rows * columns;
    const grid = { rows, columns, digits: new Int8Array(digits.length), known: new Uint8Array(places), order: order.subarray(0, left) };
    for (const place of grid.order) {
      grid.known[place] = 1;
      for (let at = place; at < digits.length; at += places) grid.digits[at] = digits[at];
    }
    left -= grid.order.length;
    return grid;
  });
  return { grids: kept, ends: ends.subarray(0, length) };
}

/** What a reader can say of a file and its tokens: "whole" or "cut". Throws for a damaged one.
 * @param {import("./model.js").Model} model @param {import("./container.js").File} file @param {Tokens} tokens */
export function stateOf(model, file, tokens) {
  if (file.whole) return "whole";
  if (file.surplus && endsBefore(model, file)) {
    throw new TsrError("damaged", `There are ${file.surplus} bytes after the end of the file.`);
  }
  if (file.missing === 0 || (file.missing === null && tokens.ends.length === file.length)) {
    throw new TsrError("damaged", "The checksum is wrong, so the file is damaged. Get it again.");
  }
  return "cut";
}

/** Whether the payload without its surplus is as long as the tokens cost; that of a cut file is far shorter. */
function endsBefore(model, file) {
  const payload = file.payload.subarray(0, file.payload.length - file.surplus);
  try {
    const { ends } = readTokens(model, { ...file, payload, payloadWhole: true });
    return ends.length === 0 || ends.at(-1) <= payload.length + WORD_BYTES;
  } catch {
    return false;
  }
}
