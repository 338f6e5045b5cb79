/** The .tsr file: header, payload, sections. FORMAT.md, sections 1 and 2. */

import { TsrError } from "./errors.js";

export const ALPHA = 1, ICC = 2, EXIF = 3, XMP = 4; // types of sections
export const SPACES = ["sRGB", "Display P3", "Adobe RGB (1998)", "ProPhoto RGB", "grey gamma 2.2"];
export const COLOURED = 0, GREY = 1, NEUTRAL = 2;
const SPACES_OF = [[0, 1, 2, 3], [0, 4], [0, 1, 2, 3]]; // by greyness
const SIDE_MAX = 2 ** 24; // pixels
const SURPLUS_MAX = 4096; // bytes after the end of a file, at most, that are reported as such
const CELL = 16, BLOCK = 256; // pixels
const PIXELS_MAX = 40e6; // fits the memory of any current browser
const NARROW_FACTOR = 4, NARROW_COST = 2 ** 24; // as codec/image/opening.py allows narrow images

/**
 * @typedef {object} Header
 * @property {number} width pixels
 * @property {number} height
 * @property {string} streamId four hexadecimal digits: the model
 * @property {number} length tokens in the payload
 * @property {number} space index into SPACES
 * @property {number} greyness COLOURED, GREY or NEUTRAL
 * @property {boolean} transparent
 * @property {number | null} payloadBytes null if the payload extends to the end of the file
 * @property {number} sectionBytes
 * @property {number} checksum
 * @property {number} headerBytes
 */

/**
 * @typedef {Header & {
 *   payload: Uint8Array, sections: Map<number, Uint8Array>, complete: boolean, payloadComplete: boolean,
 *   missing: number | null, surplus: number,
 * }} File
 * `complete`: the checksum is right. `payloadComplete`: no payload byte is missing as far as the header tells. `missing`: bytes that
 * were cut off, null if the header does not tell. `surplus`: trailing bytes without which the checksum is right, or 0.
 */

/** A number of 1 to 4 bytes, and the position after it. @returns {[number, number]} */
function readNumber(data, start) {
  let value = 0;
  for (let end = start; end < Math.min(start + 4, data.length); end++) {
    value = value * 128 + (data[end] & 127);
    if (data[end] < 128) {
      if (end > start && data[start] === 128) throw new TsrError("damaged", "A number in the header is longer than it need be.");
      return [value, end + 1];
    }
  }
  throw new TsrError(data.length < start + 4 ? "cut" : "damaged", "The header ends in the middle of a number.");
}

function bigEndian(data, start, size) {
  let value = 0;
  for (let i = 0; i < size; i++) value = value * 256 + data[start + i];
  return value;
}

/** The header of a file. 29 bytes are always enough. @param {Uint8Array} data @returns {Header} */
export function readHeader(data) {
  if (data[0] !== 0xd4 || data[1] !== 0x54) throw new TsrError("format", "This is not a .tsr file.");
  const short = new TsrError("cut", "The file ends within its header.");
  if (data.length < 3) throw short;
  const version = data[2] >> 4, flags = data[2] & 15;
  if (version !== 1) throw new TsrError("format", `This is a .tsr file of version ${version}. This page reads version 1.`);
  if (flags & 8) throw new TsrError("format", "This file needs its reference, which this page does not support.");
  if ((flags & 3) === 3) throw new TsrError("damaged", "The header has unknown flags.");
  const size = [1, 2, 4][flags & 3];
  if (data.length < 5 + 2 * size) throw short;
  const [width, height] = [0, 1].map((i) => bigEndian(data, 5 + i * size, size) + 1);
  if (Math.max(width, height) > SIDE_MAX) throw new TsrError("damaged", `The header says ${width}x${height} pixels, which is out of range.`);
  let [length, end] = readNumber(data, 5 + 2 * size);
  let kind = 0, payloadBytes = null, sectionBytes = 0;
  if (flags & 4) {
    if (data.length <= end) throw short;
    kind = data[end++];
  }
  const space = kind & 15, greyness = (kind >> 4) & 3;
  if (!SPACES_OF[greyness]?.includes(space)) throw new TsrError("damaged", "The header names an unknown kind of image.");
  if (kind & 128) {
    [payloadBytes, end] = readNumber(data, end);
    [sectionBytes, end] = readNumber(data, end);
    if (payloadBytes > payloadMax(width, height)) {
      throw new TsrError("damaged", `${payloadBytes} bytes of tokens are too many for ${width}x${height} pixels.`);
    }
  }
  if (data.length < end + 3) throw short;
  const streamId = [data[3], data[4]].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return {
    width, height, streamId, length, space, greyness, transparent: (kind & 64) > 0, payloadBytes, sectionBytes,
    checksum: bigEndian(data, end, 3), headerBytes: end + 3,
  };
}

function payloadMax(width, height) {
  return 1024 * Math.ceil(width / CELL) * Math.ceil(height / CELL);
}

/** The most bytes of a file that begins with `data`. Throws a TsrError if its image is too large for this page, or so narrow that its
 * blocks are. @param {Uint8Array} data */
export function bytesAllowed(data) {
  const header = readHeader(data), { width, height } = header;
  const blocks = Math.ceil(width / BLOCK) * Math.ceil(height / BLOCK);
  const allowed = Math.max(NARROW_FACTOR * width * height, PIXELS_MAX / 30, NARROW_COST);
  if (width * height > PIXELS_MAX || (blocks > 1 && blocks * BLOCK ** 2 > allowed)) {
    const megapixels = Math.round(Math.max(width * height, blocks * BLOCK ** 2) / 1e6);
    throw new TsrError("large", `Decoding ${width}x${height} takes as much as ${megapixels} megapixels. This page opens up to ${PIXELS_MAX / 1e6}.`);
  }
  return fileBytesMax(header);
}

function fileBytesMax({ width, height, headerBytes, payloadBytes, sectionBytes }) {
  return headerBytes + (payloadBytes === null ? payloadMax(width, height) : payloadBytes + sectionBytes);
}

/** A file, which may be cut. A wrong checksum is not an error: see `complete`.
 * @param {Uint8Array} data @returns {File} */
export function readFile(data) {
  const header = readHeader(data);
  const size = header.payloadBytes === null ? null : header.headerBytes + header.payloadBytes + header.sectionBytes;
  const over = data.length - fileBytesMax(header);
  if (over > 0) throw new TsrError("damaged", `The file has ${over} bytes after its end.`);
  const crc = crc32(data.subarray(header.headerBytes), crc32(data.subarray(0, header.headerBytes - 3)));
  const complete = data.length >= (size ?? 0) && (crc & 0xffffff) === header.checksum;
  const missing = size === null ? (complete ? 0 : null) : size - data.length;
  const end = header.payloadBytes === null ? data.length : header.headerBytes + header.payloadBytes;
  const sections = readSections(data.subarray(end), Boolean(missing));
  if (header.transparent !== sections.has(ALPHA) && !missing) {
    throw new TsrError("damaged", "The header and the sections do not agree on transparency.");
  }
  const payloadComplete = missing !== null && end <= data.length;
  const surplus = missing === null ? surplusOf(data, header) : 0;
  return { ...header, payload: data.subarray(header.headerBytes, end), sections, complete, payloadComplete, missing, surplus };
}

function surplusOf(data, header) {
  const first = Math.max(header.headerBytes, data.length - SURPLUS_MAX);
  let crc = crc32(data.subarray(header.headerBytes, first), crc32(data.subarray(0, header.headerBytes - 3)));
  for (let end = first; end < data.length; end++) {
    if ((crc & 0xffffff) === header.checksum) return data.length - end;
    crc = crc32(data.subarray(end, end + 1), crc);
  }
  return 0;
}

/** @param {Uint8Array} data @param {boolean} cut whether the last sections may be missing @returns {Map<number, Uint8Array>} */
function readSections(data, cut) {
  const sections = new Map();
  let position = 0;
  while (position < data.length) {
    const type = data[position];
    if (type === 0 || sections.has(type)) throw new TsrError("damaged", `The file has two sections of type ${type}, or one of type 0.`);
    let size, start;
    try {
      [size, start] = readNumber(data, position + 1);
    } catch (error) {
      if (cut) break;
      throw error;
    }
    if (start + size > data.length) {
      if (cut) break;
      throw new TsrError("damaged", "The sections are longer than the header says.");
    }
    sections.set(type, data.subarray(start, (position = start + size)));
  }
  return sections;
}

const CRC_TABLE = Int32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** The CRC-32 of ISO 3309, as in zlib and PNG, continued from `before`. @param {Uint8Array} data */
export function crc32(data, before = 0) {
  let crc = ~before;
  for (let i = 0; i < data.length; i++) crc = CRC_TABLE[(crc ^ data[i]) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}
