/** The tokens of an image: their grids, their order, and their decoding. FORMAT.md, sections 3, 4 and 6. */

import { contextsOf } from "./entropy_model.js";
import { TsrError } from "./errors.js";
import { RangeDecoder } from "./range_coder.js";

const CELL = 16, BLOCK_CELLS = 16;
const WORD_BYTES = 4; // of the range coder: trailing zeros are not stored

/** @typedef {{ rows: number, columns: number, digits: Int8Array, known: Uint8Array, order: Uint32Array }} Grid
 * Tokens of a level. `digits` has one plane after the other, with zeros for unknown tokens. `order` has the positions of the known
 * tokens in the order in which they are sent. */
/** @typedef {{ grids: Grid[], ends: Uint32Array }} Tokens
 * `ends` has for each known token the number of bytes of the payload that make it certain. */

/** Rows and columns of the coded tokens of a level. @returns {[number, number]} */
export function gridOf(level, width, height) {
  return [height, width].map((side) => Math.ceil(Math.ceil(side / CELL) / (BLOCK_CELLS / level.side)));
}

/** Number of tokens of a grid that belong to a part of it. */
export function countOf(part, rows, columns) {
  return part === 0 ? rows * columns : (rows * columns + (part === 1 ? 1 : 0)) >> 1;
}

/** Tokens per block of 256x256 pixels for the first `length` tokens, the unit of lengths for people.
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

/** Positions of the tokens of a level in the order in which they are sent: the highest expected cost first, ties by Z-order key.
 * @param {Float64Array} costs by context @param {Uint8Array} contexts (positions, digits) @returns {Uint32Array} */
function orderOf(costs, contexts, digits, part, rows, columns) {
  const positions = [], cost = new Float64Array(rows * columns), key = new Float64Array(rows * columns);
  const bits = Math.max(1, 32 - Math.clz32(Math.max(rows, columns) - 1));
  for (let y = 0, position = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++, position++) {
      if (part !== 0 && (y + x) % 2 !== part - 1) continue;
      positions.push(position);
      for (let d = 0; d < digits; d++) cost[position] += costs[contexts[position * digits + d]];
      for (let bit = 0; bit < bits; bit++) key[position] = key[position] * 4 + ((y >> bit) & 1) * 2 + ((x >> bit) & 1);
    }
  }
  return Uint32Array.from(positions).sort((a, b) => cost[b] - cost[a] || key[a] - key[b]);
}

/**
 * The tokens of a file: all of them, or the certain ones if its payload may have been cut.
 * @param {import("./model.js").Model} model
 * @param {import("./container.js").File} file
 * @returns {Tokens}
 */
export function readTokens(model, file) {
  const { levels, entropyModels } = model, { width, height, payload, length, payloadComplete } = file;
  const available = levels.reduce((sum, level) => sum + countOf(level.part, ...gridOf(level, width, height)), 0);
  if (length > available) throw new TsrError("damaged", `The header says ${length} tokens, and an image of this size has ${available}.`);
  const decoder = new RangeDecoder(payload);
  const grids = [], ends = new Uint32Array(length);
  let read = 0, certain = true;
  levels.forEach((level, index) => {
    const [rows, columns] = gridOf(level, width, height), positions = rows * columns;
    const grid = {
      rows, columns, digits: new Int8Array(level.digits * positions), known: new Uint8Array(positions), order: new Uint32Array(),
    };
    grids.push(grid);
    if (!certain || read === length) return;
    const { cumulative, costs, symbols } = entropyModels[index];
    const contexts = contextsOf(model, index, grids, rows, columns);
    const order = orderOf(costs, contexts, level.digits, level.part, rows, columns).subarray(0, length - read);
    const token = new Int8Array(level.digits);
    let count = 0;
    for (; count < order.length; count++) {
      const position = order[count];
      for (let d = 0; certain && d < level.digits; d++) {
        const symbol = decoder.symbol(cumulative, contexts[position * level.digits + d] * (symbols + 1), symbols);
        token[d] = symbol - level.limit;
        certain = symbol >= 0;
      }
      if (!certain && payloadComplete) throw new TsrError("damaged", "The tokens are damaged.");
      const end = certain ? decoder.certainBytes() : 0;
      if (!payloadComplete && end > payload.length) certain = false;
      if (!certain) break;
      for (let d = 0; d < level.digits; d++) grid.digits[d * positions + position] = token[d];
      grid.known[position] = 1;
      ends[read++] = end;
    }
    grid.order = order.subarray(0, count);
  });
  return { grids, ends: ends.subarray(0, read) };
}

/** The first `length` of these tokens. @param {Tokens} tokens @returns {Tokens} */
export function firstTokens({ grids, ends }, length) {
  let left = length;
  const kept = grids.map(({ rows, columns, digits, order }) => {
    const positions = rows * columns;
    const grid = { rows, columns, digits: new Int8Array(digits.length), known: new Uint8Array(positions), order: order.subarray(0, left) };
    for (const position of grid.order) {
      grid.known[position] = 1;
      for (let i = position; i < digits.length; i += positions) grid.digits[i] = digits[i];
    }
    left -= grid.order.length;
    return grid;
  });
  return { grids: kept, ends: ends.subarray(0, length) };
}

/** "complete" or "cut". Throws a TsrError if the file is damaged.
 * @param {import("./model.js").Model} model @param {import("./container.js").File} file @param {Tokens} tokens */
export function stateOf(model, file, tokens) {
  if (file.complete) return "complete";
  if (file.surplus && endsBefore(model, file)) {
    throw new TsrError("damaged", `The file has ${file.surplus} bytes after its end.`);
  }
  if (file.missing === 0 || (file.missing === null && tokens.ends.length === file.length)) {
    throw new TsrError("damaged", "The file is damaged: its checksum is wrong. Download it again.");
  }
  return "cut";
}

/** Whether the payload without its surplus is as long as its tokens cost. A cut payload is far shorter. */
function endsBefore(model, file) {
  const payload = file.payload.subarray(0, file.payload.length - file.surplus);
  try {
    const { ends } = readTokens(model, { ...file, payload, payloadComplete: true });
    return ends.length === 0 || ends.at(-1) <= payload.length + WORD_BYTES;
  } catch {
    return false;
  }
}
