/** The prior: from known digits alone, the class of each next one, in integers. FORMAT.md, section 5. All sums stay below 2^53,
 * where a double holds every integer, so that the result is the same on every machine. */

const ACTIVATION_MAX = 4095;
const LOOK = 3; // grids before its own that a level reads
export const ODD = 2; // the part of a grid that completes another level's

/** The grids that the prior of a level reads, coarsest first, each as the levels that it is made of.
 * @param {import("./model.js").Level[]} levels @returns {number[][]} */
export function gridsBefore(levels, index) {
  const grids = [];
  for (let other = 0; other <= index; other++) {
    if (levels[other].part === ODD) grids.at(-1).push(other);
    else grids.push([other]);
  }
  const own = grids.pop().filter((other) => other < index);
  return own.length ? [...grids.slice(-LOOK), own] : grids.slice(-LOOK);
}

/** What the prior of a level reads, plane after plane of rows x columns: absolute digits of the grids before it.
 * @param {import("./model.js").Level[]} levels @param {import("./tokens.js").Grid[]} grids of the levels before
 * @returns {Uint8Array} */
function planesOf(levels, index, grids, rows, columns) {
  const before = gridsBefore(levels, index);
  const count = before.reduce((sum, [first]) => sum + levels[first].digits, 0);
  const planes = new Uint8Array(Math.max(1, count) * rows * columns);
  let at = 0;
  for (const members of before) {
    const repeat = levels[index].side / levels[members[0]].side;
    for (let d = 0; d < levels[members[0]].digits; d++) {
      for (let y = 0; y < rows; y++) {
        for (let x = 0; x < columns; x++, at++) {
          for (const other of members) {
            const grid = grids[other];
            const place = Math.floor(y / repeat) * grid.columns + Math.floor(x / repeat);
            planes[at] += Math.abs(grid.digits[d * grid.rows * grid.columns + place]);
          }
        }
      }
    }
  }
  return planes;
}

/** The classes of all digits of a level, place after place in reading order, digit after digit.
 * @param {import("./model.js").Model} model @param {import("./tokens.js").Grid[]} grids @returns {Uint8Array} */
export function classesOf(model, index, grids, rows, columns) {
  const places = rows * columns, { layers, costs } = model.priors[index];
  const planes = planesOf(model.levels, index, grids, rows, columns);
  const inputs = planes.length / places;
  let x = new Uint16Array(planes.length); // as (place, channel), like all that follows
  for (let k = 0, at = 0; k < inputs; k++) {
    for (let place = 0; place < places; place++) x[place * inputs + k] = planes[at++];
  }
  layers.forEach((layer, depth) => {
    x = convolve(layer, x, rows, columns, depth === layers.length - 1 ? costs.length - 1 : ACTIVATION_MAX);
  });
  return Uint8Array.from(x);
}

/** One layer, with zeros outside. Most digits are zero, and so are many activations: each input that is not is added to where it
 * counts. @param {import("./model.js").Layer} layer @param {Uint16Array} x @returns {Uint16Array} */
function convolve({ weight, bias, inputs, outputs, kernel, scale }, x, rows, columns, top) {
  const reach = kernel >> 1;
  const out = new Uint16Array(rows * columns * outputs);
  const total = new Float64Array(outputs);
  for (let y = 0, at = 0; y < rows; y++) {
    for (let column = 0; column < columns; column++) {
      total.set(bias);
      for (let dy = -reach; dy <= reach; dy++) {
        for (let dx = -reach; dx <= reach; dx++) {
          const row = y + dy, place = column + dx;
          if (row < 0 || row >= rows || place < 0 || place >= columns) continue;
          const from = (row * columns + place) * inputs;
          const tap = ((dy + reach) * kernel + dx + reach) * inputs * outputs;
          for (let k = 0; k < inputs; k++) {
            const value = x[from + k];
            if (value === 0) continue;
            for (let o = 0, w = tap + k * outputs; o < outputs; o++, w++) total[o] += value * weight[w];
          }
        }
      }
      for (let o = 0; o < outputs; o++) out[at++] = Math.min(top, Math.max(0, Math.floor(total[o] * scale)));
    }
  }
  return out;
}
