/** Raw LZMA2 streams (FORMAT.md, section 2): chunks as in .xz files, ended by the control byte 00. The decoder follows the
 * specification in Igor Pavlov's LZMA SDK. */

import { TsrError } from "./errors.js";

const DICTIONARY = 2 ** 20; // bytes that matches reach back at most
const HALF = 1024; // of 2048: the initial probability of a bit
const LITERAL_STATES = 7; // states below it follow a literal

/** Thrown for any damage within this module. `unpack` adds the name of the section. */
class Damaged extends Error {}

/**
 * The content of a packed section. Throws a TsrError if it is damaged or has more than `maxSize` bytes.
 * @param {Uint8Array} packed @param {number} maxSize @param {string} label name of the section, for people @returns {Uint8Array}
 */
export function unpack(packed, maxSize, label) {
  try {
    return new Lzma2(packed, maxSize).content();
  } catch (error) {
    if (!(error instanceof Damaged)) throw error;
    throw new TsrError("damaged", `The ${label} in the file is damaged.`);
  }
}

class Lzma2 {
  constructor(packed, maxSize) {
    this.input = packed;
    this.position = 0;
    this.maxSize = maxSize;
    this.out = new Uint8Array(Math.min(maxSize, 1 << 16));
    this.size = 0;
    this.start = -1; // of the dictionary; -1 before the first reset
  }

  content() {
    for (;;) {
      const control = this.byte();
      if (control === 0) break;
      if (control >= 0xe0 || control === 1) {
        this.start = this.size;
        this.probabilities = null; // new properties must come first
      }
      if (this.start < 0) throw new Damaged();
      if (control < 0x80) {
        if (control > 2) throw new Damaged();
        this.copy(this.short() + 1);
        continue;
      }
      const unpacked = (control & 0x1f) * 65536 + this.short() + 1, end = this.short() + 1;
      if (control >= 0xc0) this.properties(this.byte());
      if (control >= 0xa0) this.reset();
      if (!this.probabilities) throw new Damaged();
      this.chunk(this.size + unpacked, this.position + end);
    }
    if (this.position !== this.input.length) throw new Damaged();
    return this.out.subarray(0, this.size);
  }

  byte() {
    if (this.position >= this.input.length) throw new Damaged();
    return this.input[this.position++];
  }

  short() {
    const high = this.byte();
    return high * 256 + this.byte();
  }

  copy(count) {
    if (this.position + count > this.input.length) throw new Damaged();
    while (count--) this.put(this.byte());
  }

  put(value) {
    if (this.size === this.maxSize) throw new Damaged();
    if (this.size === this.out.length) {
      const larger = new Uint8Array(Math.min(this.maxSize, 2 * this.size));
      larger.set(this.out);
      this.out = larger;
    }
    this.out[this.size++] = value;
  }

  properties(value) {
    if (value >= 9 * 5 * 5) throw new Damaged();
    this.contextBits = value % 9;
    this.literalMask = (1 << Math.floor(value / 9) % 5) - 1;
    this.positionMask = (1 << Math.floor(value / 45)) - 1;
    if (this.contextBits + (Math.floor(value / 9) % 5) > 4) throw new Damaged();
    this.probabilities = {};
  }

  reset() {
    if (!this.probabilities) throw new Damaged();
    const fresh = (count) => new Uint16Array(count).fill(HALF);
    const lengths = () => ({ choice: fresh(2), low: fresh(16 * 8), middle: fresh(16 * 8), high: fresh(256) });
    this.probabilities = {
      match: fresh(12 * 16), repeat: fresh(12), first: fresh(12), second: fresh(12), third: fresh(12), long: fresh(12 * 16),
      literal: fresh(16 * 0x300), slot: fresh(4 * 64), special: fresh(128), align: fresh(16),
      matched: lengths(), repeated: lengths(),
    };
    this.state = 0;
    this.distances = [0, 0, 0, 0]; // of the last matches, less one
  }

  /** One compressed chunk. `outEnd` and `inEnd` are the ends of its output and its input. */
  chunk(outEnd, inEnd) {
    if (inEnd > this.input.length || outEnd > this.maxSize) throw new Damaged();
    this.range = 0xffffffff;
    if (this.byte() !== 0) throw new Damaged();
    this.code = (this.short() * 65536 + this.short()) >>> 0;
    while (this.size < outEnd) this.step(outEnd);
    this.normalise();
    if (this.position !== inEnd || this.code !== 0) throw new Damaged();
  }

  /** One literal or match. */
  step(outEnd) {
    const p = this.probabilities, position = (this.size - this.start) & this.positionMask, index = this.state * 16 + position;
    if (!this.bit(p.match, index)) return this.literal();
    let length;
    if (this.bit(p.repeat, this.state)) {
      if (this.size === this.start) throw new Damaged();
      if (!this.bit(p.first, this.state)) {
        if (!this.bit(p.long, index)) {
          this.state = this.state < LITERAL_STATES ? 9 : 11;
          return this.match(1, outEnd);
        }
      } else {
        const which = !this.bit(p.second, this.state) ? 1 : 2 + this.bit(p.third, this.state);
        this.distances.unshift(...this.distances.splice(which, 1));
      }
      length = this.length(p.repeated, position);
      this.state = this.state < LITERAL_STATES ? 8 : 11;
    } else {
      length = this.length(p.matched, position);
      this.state = this.state < LITERAL_STATES ? 7 : 10;
      this.distances.pop();
      this.distances.unshift(this.distance(Math.min(length, 5) - 2));
    }
    this.match(length, outEnd);
  }

  literal() {
    const before = this.size > this.start ? this.out[this.size - 1] : 0;
    const context = (((this.size - this.start) & this.literalMask) << this.contextBits) + (before >> (8 - this.contextBits));
    const p = this.probabilities.literal, base = context * 0x300;
    let symbol = 1;
    if (this.state >= LITERAL_STATES) {
      let expected = this.out[this.size - 1 - this.distances[0]], offset = 0x100;
      while (symbol < 0x100) {
        expected <<= 1;
        const expectedBit = expected & offset;
        const bit = this.bit(p, base + offset + expectedBit + symbol);
        symbol = symbol * 2 + bit;
        offset &= bit ? expectedBit : ~expectedBit;
      }
    } else {
      while (symbol < 0x100) symbol = symbol * 2 + this.bit(p, base + symbol);
    }
    this.put(symbol & 0xff);
    this.state = this.state < 4 ? 0 : this.state < 10 ? this.state - 3 : this.state - 6;
  }

  match(length, outEnd) {
    const back = this.distances[0] + 1;
    if (back > Math.min(this.size - this.start, DICTIONARY) || this.size + length > outEnd) throw new Damaged();
    while (length--) this.put(this.out[this.size - back]);
  }

  length(p, position) {
    if (!this.bit(p.choice, 0)) return 2 + this.tree(p.low, position * 8, 3);
    if (!this.bit(p.choice, 1)) return 10 + this.tree(p.middle, position * 8, 3);
    return 18 + this.tree(p.high, 0, 8);
  }

  distance(lengthState) {
    const slot = this.tree(this.probabilities.slot, lengthState * 64, 6);
    if (slot < 4) return slot;
    const bits = (slot >> 1) - 1, high = (2 | (slot & 1)) * 2 ** bits;
    if (slot < 14) return high + this.reverse(this.probabilities.special, high - slot, bits);
    let middle = 0;
    for (let i = 4; i < bits; i++) middle = middle * 2 + this.even();
    return high + middle * 16 + this.reverse(this.probabilities.align, 0, 4);
  }

  tree(p, base, bits) {
    let symbol = 1;
    for (let i = 0; i < bits; i++) symbol = symbol * 2 + this.bit(p, base + symbol);
    return symbol - (1 << bits);
  }

  reverse(p, base, bits) {
    let symbol = 1, value = 0;
    for (let i = 0; i < bits; i++) {
      const bit = this.bit(p, base + symbol);
      symbol = symbol * 2 + bit;
      value += bit << i;
    }
    return value;
  }

  normalise() {
    if (this.range < 2 ** 24) {
      this.range = (this.range << 8) >>> 0;
      this.code = ((this.code << 8) | this.byte()) >>> 0;
    }
  }

  bit(p, index) {
    this.normalise();
    const bound = (this.range >>> 11) * p[index];
    if (this.code < bound) {
      this.range = bound;
      p[index] += (2048 - p[index]) >> 5;
      return 0;
    }
    this.range -= bound;
    this.code -= bound;
    p[index] -= p[index] >> 5;
    return 1;
  }

  even() {
    this.normalise();
    this.range >>>= 1;
    if (this.code < this.range) return 0;
    this.code -= this.range;
    return 1;
  }
}
