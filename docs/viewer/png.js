/** Writes PNG files (ISO 15948). Unlike a canvas, they keep colour profile, EXIF and XMP on screen and on disk. */

import { crc32 } from "./container.js";
import { bytes, word } from "./profiles.js";

const COLOUR_TYPES = [undefined, 0, 4, 2, 6]; // by channels: grey, grey with alpha, RGB, RGBA

/**
 * @param {Uint8Array} pixels row by row, `channels` values each @param {number} width @param {number} height
 * @param {number} channels 1 to 4 @param {{ icc?: Uint8Array | null, exif?: Uint8Array | null, xmp?: Uint8Array | null }} extras
 * @returns {Promise<Blob>}
 */
export async function encodePng(pixels, width, height, channels, { icc, exif, xmp } = {}) {
  const chunks = [chunk("IHDR", word(width), word(height), Uint8Array.of(8, COLOUR_TYPES[channels], 0, 0, 0))];
  if (icc) chunks.push(chunk("iCCP", "profile", Uint8Array.of(0, 0), await deflated(icc)));
  if (exif) chunks.push(chunk("eXIf", exif));
  if (xmp) chunks.push(chunk("iTXt", "XML:com.adobe.xmp", new Uint8Array(5), xmp));
  chunks.push(chunk("IDAT", await deflated(filtered(pixels, width, height, channels))), chunk("IEND"));
  const signature = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);
  return new Blob([signature, ...chunks], { type: "image/png" });
}

function chunk(type, ...parts) {
  const body = bytes(type, ...parts);
  return bytes(word(body.length - 4), body, word(crc32(body)));
}

async function deflated(data) {
  const stream = new Blob([data]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Rows after Paeth's filter, which suits photographs, each with the number of the filter in front. */
function filtered(pixels, width, height, channels) {
  const stride = width * channels;
  const out = new Uint8Array(height * (stride + 1));
  for (let y = 0, from = 0, to = 0; y < height; y++) {
    out[to++] = 4;
    for (let x = 0; x < stride; x++, from++) {
      const left = x >= channels ? pixels[from - channels] : 0, above = y > 0 ? pixels[from - stride] : 0;
      const corner = x >= channels && y > 0 ? pixels[from - stride - channels] : 0;
      const byLeft = Math.abs(above - corner), byAbove = Math.abs(left - corner), byCorner = Math.abs(left + above - 2 * corner);
      out[to++] = pixels[from] - (byLeft <= byAbove && byLeft <= byCorner ? left : byAbove <= byCorner ? above : corner);
    }
  }
  return out;
}
