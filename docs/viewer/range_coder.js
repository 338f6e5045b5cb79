/** The range decoder. FORMAT.md, section 6. Each number of 64 bits is two of 32, stored as doubles. */

const WORD = 2 ** 32;

export class RangeDecoder {
  /** @param {Uint8Array} payload zeros follow it */
  constructor(payload) {
    this.payload = payload;
    this.position = 0; // bytes read
    this.rangeHigh = this.rangeLow = WORD - 1;
    this.pointHigh = this.gapHigh = this.word();
    this.pointLow = this.gapLow = this.word(); // gap = point - low
  }

  word() {
    let value = 0;
    for (let i = 0; i < 4; i++) value = value * 256 + (this.payload[this.position++] ?? 0);
    return value;
  }

  /** The next symbol, or -1 if the bytes stand for none.
   * @param {Float64Array} cumulative has, from `start` on, 0 and the running sums of the frequencies of `symbols` symbols */
  symbol(cumulative, start, symbols) {
    const scale = this.rangeHigh * 256 + Math.floor(this.rangeLow / 2 ** 24);
    // The quotient of doubles may be off by one. The symbol found with it is then corrected with exact products.
    const quotient = Math.floor((this.gapHigh * WORD + this.gapLow) / scale);
    let symbol = symbols >> 1; // digit 0, by far the most likely
    while (symbol > 0 && quotient < cumulative[start + symbol]) symbol--;
    while (symbol < symbols - 1 && quotient >= cumulative[start + symbol + 1]) symbol++;
    for (;;) {
      this.multiply(scale, cumulative[start + symbol]);
      if (this.gapHigh > this.high || (this.gapHigh === this.high && this.gapLow >= this.low)) break;
      symbol--;
    }
    let belowHigh, belowLow;
    for (;;) {
      [belowHigh, belowLow] = [this.high, this.low];
      this.multiply(scale, cumulative[start + symbol + 1]);
      if (this.gapHigh < this.high || (this.gapHigh === this.high && this.gapLow < this.low)) break;
      if (++symbol === symbols) return -1;
    }
    [this.gapHigh, this.gapLow] = minus(this.gapHigh, this.gapLow, belowHigh, belowLow);
    [this.rangeHigh, this.rangeLow] = minus(this.high, this.low, belowHigh, belowLow);
    if (this.rangeHigh === 0) {
      this.rangeHigh = this.rangeLow;
      this.rangeLow = 0;
      this.pointHigh = this.pointLow;
      this.gapHigh = this.gapLow;
      this.gapLow = this.pointLow = this.word();
    }
    return symbol;
  }

  /** Sets `high` and `low` to the product of numbers of at most 40 and 25 bits. */
  multiply(scale, sum) {
    const upper = Math.floor(scale / 65536) * sum, carried = Math.floor(upper / 65536);
    const rest = (upper - carried * 65536) * 65536 + (scale % 65536) * sum;
    const over = Math.floor(rest / WORD);
    this.high = carried + over;
    this.low = rest - over * WORD;
  }

  /** The fewest bytes of the payload that make all symbols so far certain, whatever bytes follow. The coder is monotone, so zeros
   * and ones after these bytes bound all continuations. */
  certainBytes() {
    const join = (high, low) => (BigInt(high) << 32n) | BigInt(low);
    const gap = join(this.gapHigh, this.gapLow), range = join(this.rangeHigh, this.rangeLow), point = join(this.pointHigh, this.pointLow);
    for (let open = 7; open > 0; open--) {
      const mask = (1n << BigInt(8 * open)) - 1n, tail = point & mask;
      if (gap >= tail && gap + mask - tail < range) return this.position - open;
    }
    return this.position;
  }
}

function minus(high, low, otherHigh, otherLow) {
  return low >= otherLow ? [high - otherHigh, low - otherLow] : [high - otherHigh - 1, low - otherLow + WORD];
}
