/** ICC profiles of the numbered colour spaces. FORMAT.md, section 1; ICC.1:2010, version 4.3. */

import { SPACES } from "./container.js";

const SRGB_CURVE = [2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045]; // ICC's parametric curve of type 3
const PRIMARIES = [ // X, Y, Z of red, green and blue, relative to D50
  [[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.7141]],
  [[0.51512, 0.2412, -0.00105], [0.29198, 0.69225, 0.04189], [0.1571, 0.06657, 0.78407]],
  [[0.60974, 0.31111, 0.01947], [0.20528, 0.62567, 0.06087], [0.14919, 0.06322, 0.74457]],
  [[0.79767, 0.28804, 0], [0.13519, 0.71188, 0], [0.03134, 0.00009, 0.82491]],
  [],
];
const CURVES = [SRGB_CURVE, SRGB_CURVE, [563 / 256], [1.8], [2.2]];
const D50 = [0.9642, 1, 0.8249];

/** The profile of a colour space; null for sRGB, the default of images without a profile.
 * @param {number} number @returns {Uint8Array | null} */
export function profileOf(number) {
  if (number === 0) return null;
  const curve = CURVES[number], primaries = PRIMARIES[number];
  const shape = bytes("para", word(0), half(curve.length > 1 ? 3 : 0), half(0), ...curve.map(fixed));
  const tags = [["desc", text(SPACES[number])], ["cprt", text("No copyright, use freely")], ["wtpt", xyz(D50)]];
  primaries.forEach((primary, i) => tags.push([`${"rgb"[i]}XYZ`, xyz(primary)], [`${"rgb"[i]}TRC`, shape]));
  if (!primaries.length) tags.push(["kTRC", shape]);
  let offset = 132 + 12 * tags.length;
  const table = [word(tags.length)], bodies = [];
  for (const [name, content] of tags) {
    table.push(name, word(offset), word(content.length));
    bodies.push(content, new Uint8Array(-content.length & 3));
    offset += content.length + (-content.length & 3);
  }
  const date = [2026, 1, 1, 0, 0, 0].map(half);
  const head = bytes(
    word(offset), word(0), word(0x04300000), "mntr", primaries.length ? "RGB " : "GRAY", "XYZ ", ...date, "acsp",
    new Uint8Array(28), ...D50.map(fixed), new Uint8Array(48),
  );
  return bytes(head, ...table, ...bodies);
}

const xyz = (values) => bytes("XYZ ", word(0), ...values.map(fixed));

/** A multiLocalizedUnicode of one language. */
function text(value) {
  const letters = [...value].map((letter) => half(letter.charCodeAt(0)));
  return bytes("mluc", word(0), word(1), word(12), "enUS", word(2 * letters.length), word(28), ...letters);
}

const fixed = (value) => word(Math.round(65536 * value)); // ICC's s15Fixed16
const half = (value) => Uint8Array.of(value >> 8, value);
export const word = (value) => Uint8Array.of(value >> 24, value >> 16, value >> 8, value);

/** Concatenates arrays, and strings as ASCII. @param {...(string | Uint8Array)} parts */
export function bytes(...parts) {
  const arrays = parts.map((part) => (typeof part === "string" ? new TextEncoder().encode(part) : part));
  const all = new Uint8Array(arrays.reduce((sum, array) => sum + array.length, 0));
  let end = 0;
  for (const array of arrays) {
    all.set(array, end);
    end += array.length;
  }
  return all;
}
