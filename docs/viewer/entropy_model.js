/** The integer entropy model: from known digits alone, the context of each next digit, which is the index of its frequency table.
 * FORMAT.md, section 5. All sums stay below 2^53, so doubles hold them exactly and the result is the same on every machine. */

const ACTIVATION_MAX = 4095;
const CONTEXT_GRIDS = 3; // coarser grids that the entropy model of a level reads
const NON_ANCHOR = 2; // the part of a grid that completes the anchors of the level before

/** The grids that the entropy model of a level reads, coarsest first, each as the indexes of its levels.
 * @param {import("./model.js").Level[]} levels @returns {number[][]} */
function contextGrids(levels, index) {
  const grids = [];
  for (let other = 0; other <= index; other++) {
    if (levels[other].part === NON_ANCHOR) grids.at(-1).push(other);
    else grids.push([other]);
  }
  const own = grids.pop().filter((other) => other < index);
  return own.length ? [...grids.slice(-CONTEXT_GRIDS), own] : grids.slice(-CONTEXT_GRIDS);
}

/** The input of a level's entropy model, plane by plane of rows x columns: absolute digits of the context grids.
 * @param {import("./model.js").Level[]} levels @param {import("./tokens.js").Grid[]} grids of the levels before
 * @returns {Uint8Array} */
function planesOf(levels, index, grids, rows, columns) {
  const read = contextGrids(levels, index);
  const count = read.reduce((sum, [first]) => sum + levels[first].digits, 0);
  const planes = new Uint8Array(Math.max(1, count) * rows * columns);
  let to = 0;
  for (const members of read) {
    const repeat = levels[index].side / levels[members[0]].side;
    for (let d = 0; d < levels[members[0]].digits; d++) {
      for (let y = 0; y < rows; y++) {
        for (let x = 0; x < columns; x++, to++) {
          for (const other of members) {
            const grid = grids[other];
            const position = Math.floor(y / repeat) * grid.columns + Math.floor(x / repeat);
            planes[to] += Math.abs(grid.digits[d * grid.rows * grid.columns + position]);
          }
        }
      }
    }
  }
  return planes;
}

/** The contexts of all digits of a level as (position, digit), positions in reading order.
 * @param {import("./model.js").Model} model @param {import("./tokens.js").Grid[]} grids @returns {Uint8Array} */
export function contextsOf(model, index, grids, rows, columns) {
  const positions = rows * columns, { layers, costs } = model.entropyModels[index];
  const planes = planesOf(model.levels, index, grids, rows, columns);
  const inputs = planes.length / positions;
  let x = new Uint16Array(planes.length); // (position, channel), like the output of each layer
  for (let k = 0, from = 0; k < inputs; k++) {
    for (let position = 0; position < positions; position++) x[position * inputs + k] = planes[from++];
  }
  layers.forEach((layer, depth) => {
    x = convolve(layer, x, rows, columns, depth === layers.length - 1 ? costs.length - 1 : ACTIVATION_MAX);
  });
  return Uint8Array.from(x);
}

/** One layer, with zeros outside the grid. Inputs that are zero, most digits and many activations, are skipped.
 * @param {import("./model.js").Layer} layer @param {Uint16Array} x @returns {Uint16Array} */
function convolve({ weight, bias, inputs, outputs, kernel, scale }, x, rows, columns, top) {
  const radius = kernel >> 1;
  const out = new Uint16Array(rows * columns * outputs);
  const total = new Float64Array(outputs);
  for (let y = 0, to = 0; y < rows; y++) {
    for (let x0 = 0; x0 < columns; x0++) {
      total.set(bias);
      for (let dy = -radius; dy <= radius; dy++) {
        for (let dx = -radius; dx <= radius; dx++) {
          const row = y + dy, column = x0 + dx;
          if (row < 0 || row >= rows || column < 0 || column >= columns) continue;
          const from = (row * columns + column) * inputs;
          const tap = ((dy + radius) * kernel + dx + radius) * inputs * outputs;
          for (let k = 0; k < inputs; k++) {
            const value = x[from + k];
            if (value === 0) continue;
            for (let o = 0, w = tap + k * outputs; o < outputs; o++, w++) total[o] += value * weight[w];
          }
        }
      }
      for (let o = 0; o < outputs; o++) out[to++] = Math.min(top, Math.max(0, Math.floor(total[o] * scale)));
    }
  }
  return out;
}
