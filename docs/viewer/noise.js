/** Noise for texture: bytes that depend only on a seed and on their position in the image. `codec/pyramid/noise.py`. */

const CELL = 16, CHANNELS = 4, SCALES = [8, 4, 2]; // pixels along a position

/** The hash "lowbias32", modulo 2^32. */
function mixed(state, index) {
  let x = (state + Math.imul(index, 0x9e3779b9)) >>> 0;
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}

/**
 * Noise for a box of cells (top, bottom, left, right), by the names of the graph's inputs.
 * @returns {Record<string, { data: Uint8Array, dims: number[] }>}
 */
export function textureNoise(seed, [top, bottom, left, right]) {
  const inputs = {};
  [...SCALES, SCALES.at(-1)].forEach((scale, index) => {
    const isGrain = index === SCALES.length, per = CELL / scale, rows = (bottom - top) * per, columns = (right - left) * per;
    const data = new Uint8Array(CHANNELS * rows * columns), start = mixed(seed, index);
    for (let y = 0; y < rows; y++) {
      const row = mixed(start, top * per + y);
      for (let x = 0; x < columns; x++) {
        const word = mixed(row, left * per + x);
        for (let k = 0; k < CHANNELS; k++) {
          // The bytes of a word are four channels or, at full size, a square of 2x2 pixels.
          const at = isGrain ? (2 * y + (k >> 1)) * 2 * columns + 2 * x + (k & 1) : (k * rows + y) * columns + x;
          data[at] = word >>> (8 * k);
        }
      }
    }
    if (isGrain) inputs.noise1 = { data, dims: [1, 1, 2 * rows, 2 * columns] };
    else inputs[`noise${scale}`] = { data, dims: [1, CHANNELS, rows, columns] };
  });
  return inputs;
}
