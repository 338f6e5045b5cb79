/** The decoder network: runs the graphs of `tessera models export` in ONNX Runtime. */

import { textureNoise } from "./noise.js";
import { countOf } from "./tokens.js";

const CELL = 16, BLOCK_CELLS = 16;
const UNTILED_PIXELS = 16e6; // features take about 15 bytes per pixel
const TILE = 192, PIXEL_TILE = 64; // cells; the last layers take about 150 bytes per pixel
const CACHE = 2 ** 25; // floats of cached states after each level, from which the next prefix continues

/** @typedef {{ latents: any, known: any }} State tensors (1, C, h, w) and (1, 1, h, w) of the canvas */

export class Network {
  /**
   * @param {any} ort ONNX Runtime's module @param {import("./model.js").Model} model
   * @param {(name: string) => Promise<Uint8Array>} graph returns the bytes of a graph
   * @param {number} untiledPixels pixels of the largest canvas whose features are computed in one piece
   * @param {number} tile cells along the side of a tile of features otherwise; even, because the decoder has a branch at 1/32
   */
  constructor(ort, model, graph, untiledPixels = UNTILED_PIXELS, tile = TILE) {
    Object.assign(this, { ort, model, graph, untiledPixels, tile, sessions: new Map() });
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
   * RGB pixels of the image, row by row.
   * @param {import("./tokens.js").Tokens} tokens @param {number} width @param {number} height
   * @param {State[]} states cache of the states after each complete level, for calls with the same file
   * @param {number} [detail] strength of texture, for a model that has any
   * @returns {Promise<Uint8ClampedArray>}
   */
  async pixels(tokens, width, height, states, detail = this.model.detail) {
    const rows = Math.ceil(height / CELL / BLOCK_CELLS) * BLOCK_CELLS, columns = Math.ceil(width / CELL / BLOCK_CELLS) * BLOCK_CELLS;
    return this.draw(await this.state(tokens, rows, columns, states), rows, columns, width, height, detail);
  }

  /** Latents and map of known tokens after all levels. @returns {Promise<State>} */
  async state({ grids }, rows, columns, states) {
    const { levels, metadata } = this.model, channels = metadata.network.channels;
    const fitsCache = levels.length * channels * rows * columns <= CACHE;
    const isComplete = (index) => grids[index].order.length === countOf(levels[index].part, grids[index].rows, grids[index].columns);
    const end = grids.findLastIndex(({ order }) => order.length) + 1; // in tiny images, a level may have no tokens and the next one some
    let index = 0;
    let state = { latents: this.tensor(channels, rows, columns), known: this.tensor(1, rows, columns) };
    while (index < end && states[index] && isComplete(index)) state = states[index++];
    for (; index < end; index++) {
      const { side, digits } = levels[index];
      const name = `level-${index}`, m = (rows / BLOCK_CELLS) * side, n = (columns / BLOCK_CELLS) * side;
      const { predicted } = await this.run(`${name}.predict`, state);
      const symbols = this.tensor(digits, m, n, onCanvas(grids[index].digits, digits, grids[index], m, n));
      const keep = this.tensor(1, m, n, onCanvas(grids[index].known, 1, grids[index], m, n));
      const { refined, more_known } = await this.run(`${name}.update`, { ...state, predicted, digits: symbols, keep });
      state = { latents: refined, known: more_known };
      if (fitsCache && isComplete(index)) states[index] = state;
    }
    return state;
  }

  /** @param {State} state @returns {Promise<Uint8ClampedArray>} */
  async draw({ latents, known }, rows, columns, width, height, detail) {
    const size = rows * columns * CELL ** 2 <= this.untiledPixels ? Math.max(rows, columns) : this.tile, small = Math.min(size, PIXEL_TILE);
    const { decoder: decoderRadius, pixels: pixelRadius } = this.model.metadata.reach, out = new Uint8ClampedArray(3 * width * height);
    for (const large of boxes([0, rows, 0, columns], size, decoderRadius, rows, columns)) {
      const [top, , left] = large.outer, tile = { latents: this.crop(latents, large.outer), known: this.crop(known, large.outer) };
      const { features } = await this.run("decoder.features", tile);
      const [, , h, w] = features.dims, [y0, y1, x0, x1] = large.inner; // without cells outside the image
      const box = [y0 - top, Math.min(y1, Math.ceil(height / CELL)) - top, x0 - left, Math.min(x1, Math.ceil(width / CELL)) - left];
      for (const { outer, inner } of boxes(box, small, pixelRadius, h, w)) {
        const inputs = { latents: this.crop(tile.latents, outer), features: this.crop(features, outer) };
        const place = outer.map((edge, side) => edge + (side < 2 ? top : left));
        const { pixels } = await (this.model.hasTexture ? this.run("decoder.textured", { ...inputs, ...this.texture(detail, place) }) : this.run("decoder.pixels", inputs));
        paint(out, width, height, pixels, inner.map((edge, side) => edge + (side < 2 ? top : left)), inner[0] - outer[0], inner[2] - outer[2]);
      }
    }
    return out;
  }

  /** The inputs of texture for a box of cells. */
  texture(detail, box) {
    const inputs = { detail: new this.ort.Tensor("float32", Float32Array.of(detail), [1]) };
    for (const [name, { data, dims }] of Object.entries(textureNoise(0, box))) inputs[name] = new this.ort.Tensor("uint8", data, dims);
    return inputs;
  }

  crop(tensor, [top, bottom, left, right]) {
    const [, channels, rows, columns] = tensor.dims;
    if (bottom - top === rows && right - left === columns) return tensor;
    const cropped = this.tensor(channels, bottom - top, right - left);
    for (let c = 0, to = 0; c < channels; c++) {
      for (let y = top; y < bottom; y++, to += right - left) {
        const from = (c * rows + y) * columns;
        cropped.data.set(tensor.data.subarray(from + left, from + right), to);
      }
    }
    return cropped;
  }
}

/** Planes of a grid as floats, padded with zeros at the right and the bottom. */
function onCanvas(planes, count, { rows, columns }, m, n) {
  const out = new Float32Array(count * m * n);
  for (let d = 0, from = 0; d < count; d++) {
    for (let y = 0; y < rows; y++) {
      for (let x = 0; x < columns; x++) out[(d * m + y) * n + x] = planes[from++];
    }
  }
  return out;
}

/** Cuts a box of cells (top, bottom, left, right) into tiles: their inner boxes, and outer boxes that add the halo, cropped to the
 * canvas. */
function* boxes([top, bottom, left, right], size, halo, rows, columns) {
  for (let y = top; y < bottom; y += size) {
    for (let x = left; x < right; x += size) {
      const inner = [y, Math.min(bottom, y + size), x, Math.min(right, x + size)];
      yield { inner, outer: [Math.max(0, y - halo), Math.min(rows, inner[1] + halo), Math.max(0, x - halo), Math.min(columns, inner[3] + halo)] };
    }
  }
}

/** Copies a tile without its halo to a box of cells. Values from -1 to 1 become 0 to 255; the clamped array rounds them. */
function paint(out, width, height, { data, dims: [, , rows, columns] }, box, skipRows, skipColumns) {
  const plane = rows * columns, [top, bottom, left, right] = box.map((cells) => cells * CELL);
  for (let y = top; y < Math.min(height, bottom); y++) {
    let from = (y - top + skipRows * CELL) * columns + skipColumns * CELL, to = 3 * (y * width + left);
    for (let x = left; x < Math.min(width, right); x++, from++) {
      for (let c = 0; c < 3; c++) out[to++] = data[c * plane + from] * 127.5 + 127.5;
    }
  }
}
