/** The decoder network, as the graphs that `tessera models export` writes, in ONNX Runtime. */

import { countOf } from "./tokens.js";

const CELL = 16, BLOCK_CELLS = 16;
const WHOLE = 16e6; // pixels: their features take about 15 bytes of each
const TILE = 192, PIXEL_TILE = 64; // cells; pixels take about 150 bytes of each while they are made
const CACHE = 2 ** 25; // numbers of the states after each level that are kept, so that the next prefix need not begin at 0

/** @typedef {{ latents: any, known: any }} State tensors (1, C, h, w) and (1, 1, h, w) of the canvas */

export class Network {
  /**
   * @param {any} ort the module of ONNX Runtime @param {import("./model.js").Model} model
   * @param {(name: string) => Promise<Uint8Array>} graph gives a graph's bytes
   * @param {number} whole pixels of a canvas whose features are made in one piece @param {number} tile cells along the side of a
   * tile of features, otherwise; even, because of the decoder's branch at 1/32
   */
  constructor(ort, model, graph, whole = WHOLE, tile = TILE) {
    Object.assign(this, { whole, tile });
    this.ort = ort;
    this.model = model;
    this.graph = graph;
    this.sessions = new Map();
  }

  async run(name, inputs) {
    if (!this.sessions.has(name)) {
      const options = { executionProviders: ["wasm"], graphOptimizationLevel: "all" };
      this.sessions.set(name, this.graph(`${name}.onnx`).then((content) => this.ort.InferenceSession.create(content, options)));
    }
    return (await this.sessions.get(name)).run(inputs);
  }

  tensor(channels, rows, columns, data = new Float32Array(channels * rows * columns)) {
    return new this.ort.Tensor("float32", data, [1, channels, rows, columns]);
  }

  /**
   * Pixels of the image that these tokens stand for, three values each, row by row.
   * @param {import("./tokens.js").Tokens} tokens @param {number} width @param {number} height
   * @param {State[]} states after each level that is known in full, from earlier calls for the same file; added to
   * @returns {Promise<Uint8ClampedArray>}
   */
  async pixels(tokens, width, height, states) {
    const rows = Math.ceil(height / CELL / BLOCK_CELLS) * BLOCK_CELLS, columns = Math.ceil(width / CELL / BLOCK_CELLS) * BLOCK_CELLS;
    return this.draw(await this.state(tokens, rows, columns, states), rows, columns, width, height);
  }

  /** Latents and map of known tokens. @returns {Promise<State>} */
  async state({ grids }, rows, columns, states) {
    const { levels, plain } = this.model, channels = plain.network.channels;
    const keeps = levels.length * channels * rows * columns <= CACHE;
    const whole = (index) => grids[index].order.length === countOf(levels[index].part, grids[index].rows, grids[index].columns);
    const end = grids.findLastIndex(({ order }) => order.length) + 1; // a level may have no tokens before one that has: in tiny images
    let index = 0;
    let state = { latents: this.tensor(channels, rows, columns), known: this.tensor(1, rows, columns) };
    while (index < end && states[index] && whole(index)) state = states[index++];
    for (; index < end; index++) {
      const { side, digits } = levels[index];
      const name = `level-${index}`, m = (rows / BLOCK_CELLS) * side, n = (columns / BLOCK_CELLS) * side;
      const { predicted } = await this.run(`${name}.predict`, state);
      const sent = this.tensor(digits, m, n, onCanvas(grids[index].digits, digits, grids[index], m, n));
      const keep = this.tensor(1, m, n, onCanvas(grids[index].known, 1, grids[index], m, n));
      const { refined, more_known } = await this.run(`${name}.update`, { ...state, predicted, digits: sent, keep });
      state = { latents: refined, known: more_known };
      if (keeps && whole(index)) states[index] = state;
    }
    return state;
  }

  /** @param {State} state @returns {Promise<Uint8ClampedArray>} */
  async draw({ latents, known }, rows, columns, width, height) {
    const size = rows * columns * CELL ** 2 <= this.whole ? Math.max(rows, columns) : this.tile, small = Math.min(size, PIXEL_TILE);
    const { decoder: far, pixels: near } = this.model.plain.reach, out = new Uint8ClampedArray(3 * width * height);
    for (const large of boxes([0, rows, 0, columns], size, far, rows, columns)) {
      const [top, , left] = large.outer, there = { latents: this.part(latents, large.outer), known: this.part(known, large.outer) };
      const { features } = await this.run("decoder.features", there);
      const [, , h, w] = features.dims, [y0, y1, x0, x1] = large.inner; // only what is seen of it becomes pixels
      const box = [y0 - top, Math.min(y1, Math.ceil(height / CELL)) - top, x0 - left, Math.min(x1, Math.ceil(width / CELL)) - left];
      for (const { outer, inner } of boxes(box, small, near, h, w)) {
        const { pixels } = await this.run("decoder.pixels", { latents: this.part(there.latents, outer), features: this.part(features, outer) });
        paint(out, width, height, pixels, inner.map((place, side) => place + (side < 2 ? top : left)), inner[0] - outer[0], inner[2] - outer[2]);
      }
    }
    return out;
  }

  part(tensor, [top, bottom, left, right]) {
    const [, channels, rows, columns] = tensor.dims;
    if (bottom - top === rows && right - left === columns) return tensor;
    const part = this.tensor(channels, bottom - top, right - left);
    for (let c = 0, at = 0; c < channels; c++) {
      for (let y = top; y < bottom; y++, at += right - left) {
        const from = (c * rows + y) * columns;
        part.data.set(tensor.data.subarray(from + left, from + right), at);
      }
    }
    return part;
  }
}

/** Planes of a grid, as floats, at the top left of larger planes. */
function onCanvas(planes, count, { rows, columns }, m, n) {
  const out = new Float32Array(count * m * n);
  for (let d = 0, from = 0; d < count; d++) {
    for (let y = 0; y < rows; y++) {
      for (let x = 0; x < columns; x++) out[(d * m + y) * n + x] = planes[from++];
    }
  }
  return out;
}

/** Cuts a box of cells (top, bottom, left, right) into tiles: their inner boxes, and the outer ones with a halo as far as there are
 * cells. */
function* boxes([top, bottom, left, right], size, halo, rows, columns) {
  for (let y = top; y < bottom; y += size) {
    for (let x = left; x < right; x += size) {
      const inner = [y, Math.min(bottom, y + size), x, Math.min(right, x + size)];
      yield { inner, outer: [Math.max(0, y - halo), Math.min(rows, inner[1] + halo), Math.max(0, x - halo), Math.min(columns, inner[3] + halo)] };
    }
  }
}

/** Puts a tile, without its halo, where it belongs: a box of cells. Values from -1 to 1 become 0 to 255, rounded by the clamped array. */
function paint(out, width, height, { data, dims: [, , rows, columns] }, box, skipRows, skipColumns) {
  const plane = rows * columns, [top, bottom, left, right] = box.map((cells) => cells * CELL);
  for (let y = top; y < Math.min(height, bottom); y++) {
    let from = (y - top + skipRows * CELL) * columns + skipColumns * CELL, to = 3 * (y * width + left);
    for (let x = left; x < Math.min(width, right); x++, from++) {
      for (let c = 0; c < 3; c++) out[to++] = data[c * plane + from] * 127.5 + 127.5;
    }
  }
}
