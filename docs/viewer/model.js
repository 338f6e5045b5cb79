/** The levels, entropy models and tables of a model, from a safetensors file. FORMAT.md, sections 3 and 5. */

import { TsrError } from "./errors.js";

/** @typedef {{ side: number, digits: number, limit: number, part: number }} Level */
/** @typedef {{ weight: Float64Array, bias: Float64Array, inputs: number, outputs: number, kernel: number, scale: number }} Layer
 * `weight` is (kernel, kernel, inputs, outputs); `scale` is 2^-shift. */
/** @typedef {{ layers: Layer[], cumulative: Float64Array, costs: Float64Array, symbols: number }} EntropyModel
 * `cumulative` has for each context 0 and the running sums of its frequencies: symbols + 1 numbers up to 2^24. */
/** @typedef {{ levels: Level[], entropyModels: EntropyModel[], streamId: string, hasTexture: boolean, detail: number, metadata: object }} Model
 * `detail` is the default strength of texture. */

const ARRAYS = { I16: Int16Array, I32: Int32Array, I64: BigInt64Array };

/** @param {ArrayBuffer} buffer a model file, or the `model.safetensors` of an export @returns {Model} */
export function readModel(buffer) {
  const size = Number(new DataView(buffer).getBigUint64(0, true));
  const table = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  const metadata = JSON.parse(table.__metadata__.tessera);
  if (metadata.kind !== "tessera-pyramid-1") throw new TsrError("model", `The model is of kind ${metadata.kind}, which this page does not support.`);
  const array = (name) => {
    const { dtype, data_offsets: [start, end], shape } = table[name];
    const values = new ARRAYS[dtype](buffer.slice(8 + size + start, 8 + size + end));
    return { values: Float64Array.from(values, Number), shape };
  };
  const levels = metadata.network.levels.map(({ side, digits, limit, part }) => ({ side, digits, limit, part: part ?? 0 }));
  const entropyModels = levels.map((_, index) => readEntropyModel((name) => array(`prior.${index}.${name}`)));
  const { texture_widths: widths = [], detail = 0 } = metadata.network;
  return { levels, entropyModels, streamId: metadata.fingerprint.slice(0, 4), hasTexture: widths.length > 0, detail, metadata };
}

/** @returns {EntropyModel} */
function readEntropyModel(array) {
  const layers = [...array("shifts").values].map((shift, index) => {
    const { values, shape: [outputs, inputs, kernel] } = array(`${index}.weight`);
    const weight = new Float64Array(values.length);
    for (let o = 0, from = 0; o < outputs; o++) {
      for (let k = 0; k < inputs; k++) {
        for (let tap = 0; tap < kernel * kernel; tap++) weight[(tap * inputs + k) * outputs + o] = values[from++];
      }
    }
    return { weight, bias: array(`${index}.bias`).values, inputs, outputs, kernel, scale: 2 ** -shift };
  });
  const { values, shape: [contexts, symbols] } = array("frequencies");
  const cumulative = new Float64Array(contexts * (symbols + 1));
  for (let row = 0; row < contexts; row++) {
    for (let s = 0; s < symbols; s++) {
      const sum = row * (symbols + 1) + s;
      cumulative[sum + 1] = cumulative[sum] + values[row * symbols + s];
    }
  }
  return { layers, cumulative, costs: array("costs").values, symbols };
}
