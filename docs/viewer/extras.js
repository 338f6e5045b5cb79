/** The sections of a file: alpha, colour profile, EXIF and XMP. FORMAT.md, section 2. */

import { ALPHA, EXIF, ICC, XMP } from "./container.js";
import { TsrError } from "./errors.js";
import { unpack } from "./lzma2.js";
import { profileOf } from "./profiles.js";

const CONTENT_MAX = 2 ** 24; // bytes
const ORIENTATION = 0x112;
const NOTE_MAX = 1000; // bytes of a text
const NOTES = { 0x10e: "Description", 0x10f: "Camera", 0x110: "Model", 0x13b: "Artist", 0x132: "Date", 0x8298: "Copyright" };

/** @typedef {{ alpha: Uint8Array | null, icc: Uint8Array | null, exif: Uint8Array | null, xmp: Uint8Array | null }} Extras */

/** @param {import("./container.js").File} file @returns {Extras} */
export function extrasOf({ sections, width, height, space }) {
  const content = (type, label) => (sections.has(type) ? unpack(sections.get(type), CONTENT_MAX, label) : null);
  const exif = content(EXIF, "EXIF");
  return {
    alpha: sections.has(ALPHA) ? alphaOf(sections.get(ALPHA), width, height) : null,
    icc: content(ICC, "colour profile") ?? profileOf(space),
    exif: exif && tiffOf(exif) ? upright(exif) : null,
    xmp: content(XMP, "XMP"),
  };
}

/** Opacity of each pixel, 0 to 255. */
function alphaOf(packed, width, height) {
  const shrink = packed[0];
  if (!(shrink <= 3)) throw new TsrError("damaged", "The transparency in the file is damaged.");
  const side = 1 << shrink, rows = Math.ceil(height / side), columns = Math.ceil(width / side);
  const plane = unpack(packed.subarray(1), rows * columns, "transparency");
  if (plane.length !== rows * columns) throw new TsrError("damaged", "The transparency in the file is too short.");
  if (shrink === 0) return plane;
  const clamp = (value, max) => Math.min(max, Math.max(0, value));
  const out = new Uint8Array(width * height);
  for (let y = 0, to = 0; y < height; y++) {
    const y0 = Math.floor((2 * y + 1 - side) / (2 * side)), v = 2 * y + 1 - side - 2 * side * y0;
    const upper = clamp(y0, rows - 1) * columns, lower = clamp(y0 + 1, rows - 1) * columns;
    for (let x = 0; x < width; x++, to++) {
      const x0 = Math.floor((2 * x + 1 - side) / (2 * side)), u = 2 * x + 1 - side - 2 * side * x0;
      const left = clamp(x0, columns - 1), right = clamp(x0 + 1, columns - 1);
      const total =
        (2 * side - v) * ((2 * side - u) * plane[upper + left] + u * plane[upper + right]) +
        v * ((2 * side - u) * plane[lower + left] + u * plane[lower + right]);
      out[to] = Math.floor((total + 2 * side * side) / (4 * side * side));
    }
  }
  return out;
}

/** A reader of EXIF's numbers, and the positions of the tags in its first directory; null if this is not EXIF. */
function tiffOf(exif) {
  const order = String.fromCharCode(...exif.subarray(0, 4));
  if (exif.length < 8 || (order !== "II*\0" && order !== "MM\0*")) return null;
  const view = new DataView(exif.buffer, exif.byteOffset, exif.length), little = order[0] === "I";
  const number = (start, size) => (start + size > exif.length ? 0 : size === 2 ? view.getUint16(start, little) : view.getUint32(start, little));
  const first = number(4, 4);
  const tags = Array.from({ length: number(first, 2) }, (_, i) => first + 2 + 12 * i).filter((tag) => tag + 12 <= exif.length);
  return { view, little, number, tags };
}

/** EXIF with its orientation, if it states one, set to 1. */
function upright(exif) {
  const copy = exif.slice(), { view, little, number, tags } = tiffOf(copy);
  const orientation = tags.find((tag) => number(tag, 2) === ORIENTATION);
  if (orientation !== undefined) {
    view.setUint16(orientation + 2, 3, little); // one SHORT
    view.setUint32(orientation + 4, 1, little);
    view.setUint16(orientation + 8, 1, little);
  }
  return copy;
}

/** Labels and texts of an image's EXIF. @param {Uint8Array | null} exif @returns {[string, string][]} */
export function notesOf(exif) {
  const { number, tags } = (exif && tiffOf(exif)) || { tags: [] };
  const labels = new Set();
  return tags.flatMap((tag) => {
    const label = NOTES[number(tag, 2)], count = number(tag + 4, 4);
    if (!label || number(tag + 2, 2) !== 2 || labels.has(label)) return []; // not text, or a second one
    labels.add(label);
    const start = count <= 4 ? tag + 8 : number(tag + 8, 4);
    const words = new TextDecoder().decode(exif.subarray(start, start + Math.min(count, NOTE_MAX))).replace(/\0.*$/s, "").trim();
    return words ? [[label, words]] : [];
  });
}
