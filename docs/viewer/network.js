/** The decoder network, as the graphs that `tessera models export` writes, in ONNX Runtime. */

import { countOf } from "./tokens.js";

const CELL = 16, BLOCK_CELLS = 16;
const WHOLE = 4e6; // pixels: the activations take about 150 bytes of each
const TILE = 96; // cells
const CACHE = 2 ** 25; // numbers of the states after each level that are kept, so that the next prefix need not begin at 0

/** @typedef {{ latents: any, known: any }} State tensors (1, C, h, w) and (1, 1, h, w) of the canvas */

export class Network {
  /**
   * @param {any} ort the module of ONNX Runtime @param {import("./model.js").Model} model
   * @param {(name: string) => Promise<Uint8Array>} graph gives a graph's bytes
   * @param {number} whole pixels of a canvas that is decoded in one piece @param {number} tile cells along the side of a tile;
   * even, because of the decoder's branch at 1/32
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
   * Pixels of the picture that these tokens stand for, three values each, row by row.
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
    let index = 0;
    let state = { latents: this.tensor(channels, rows, columns), known: this.tensor(1, rows, columns) };
    while (index < levels.length && states[index] && whole(index)) state = states[index++];
    for (; index < levels.length && grids[index].order.length; index++) {
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
    const size = rows * columns * CELL ** 2 <= this.whole ? Math.max(rows, columns) : this.tile;
    const halo = this.model.plain.reach.decoder, out = new Uint8ClampedArray(3 * width * height);
    for (let top = 0; top * CELL < height; top += size) {
      for (let left = 0; left * CELL < width; left += size) {
        const box = [Math.max(0, top - halo), Math.min(rows, top + size + halo), Math.max(0, left - halo), Math.min(columns, left + size + halo)];
        const { pixels } = await this.run("decoder", { latents: this.part(latents, box), known: this.part(known, box) });
        paint(out, width, height, pixels, top * CELL, left * CELL, size * CELL, (top - box[0]) * CELL, (left - box[2]) * CELL);
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

/** Puts a tile, without its halo, where it belongs. Values from -1 to 1 become 0 to 255, rounded by the clamped array. */
function paint(out, width, height, { data, dims: [, , rows, columns] }, top, left, size, skipRows, skipColumns) {
  const plane = rows * columns;
  for (let y = top; y < Math.min(height, top + size); y++) {
    let from = (y - top + skipRows) * columns + skipColumns, to = 3 * (y * width + left);
    for (let x = left; x < Math.min(width, left + size); x++, from++) {
      for (let c = 0; c < 3; c++) out[to++] = data[c * plane + from] * 127.5 + 127.5;
    }
  }
}
