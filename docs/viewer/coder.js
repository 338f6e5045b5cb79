/** The range decoder. FORMAT.md, section 6. Numbers of 64 bits are kept as two of 32, each a double that holds an integer. */

const WORD = 2 ** 32;

export class RangeDecoder {
  /** @param {Uint8Array} payload zeros follow it */
  constructor(payload) {
    this.payload = payload;
    this.position = 0; // bytes taken
    this.rangeHigh = this.rangeLow = WORD - 1;
    this.pointHigh = this.gapHigh = this.word();
    this.pointLow = this.gapLow = this.word(); // gap = point - low
  }

  word() {
    let value = 0;
    for (let i = 0; i < 4; i++) value = value * 256 + (this.payload[this.position++] ?? 0);
    return value;
  }

  /** The next symbol, or -1 where these bytes stand for none.
   * @param {Float64Array} cumulative from `start` on: 0 and the sums of the frequencies of so many symbols */
  symbol(cumulative, start, symbols) {
    const scale = this.rangeHigh * 256 + Math.floor(this.rangeLow / 2 ** 24);
    // The quotient of doubles may be one off. The symbol that it leads to is then mended with exact products.
    const quotient = Math.floor((this.gapHigh * WORD + this.gapLow) / scale);
    let symbol = symbols >> 1; // zero, the likeliest by far
    while (symbol > 0 && quotient < cumulative[start + symbol]) symbol--;
    while (symbol < symbols - 1 && quotient >= cumulative[start + symbol + 1]) symbol++;
    for (;;) {
      this.times(scale, cumulative[start + symbol]);
      if (this.gapHigh > this.high || (this.gapHigh === this.high && this.gapLow >= this.low)) break;
      symbol--;
    }
    let below, belowLow;
    for (;;) {
      [below, belowLow] = [this.high, this.low];
      this.times(scale, cumulative[start + symbol + 1]);
      if (this.gapHigh < this.high || (this.gapHigh === this.high && this.gapLow < this.low)) break;
      if (++symbol === symbols) return -1;
    }
    [this.gapHigh, this.gapLow] = minus(this.gapHigh, this.gapLow, below, belowLow);
    [this.rangeHigh, this.rangeLow] = minus(this.high, this.low, below, belowLow);
    if (this.rangeHigh === 0) {
      this.rangeHigh = this.rangeLow;
      this.rangeLow = 0;
      this.pointHigh = this.pointLow;
      this.gapHigh = this.gapLow;
      this.gapLow = this.pointLow = this.word();
    }
    return symbol;
  }

  /** The product of numbers of at most 40 and 25 bits, as `high` and `low`. */
  times(scale, sum) {
    const upper = Math.floor(scale / 65536) * sum, carried = Math.floor(upper / 65536);
    const rest = (upper - carried * 65536) * 65536 + (scale % 65536) * sum;
    const over = Math.floor(rest / WORD);
    this.high = carried + over;
    this.low = rest - over * WORD;
  }

  /** How many bytes of the payload make certain what was read so far: the fewest that lead here whatever follows them. The
   * coder is monotone, so that zeros and ones behind them bound all that can follow. */
  certain() {
    const big = (high, low) => (BigInt(high) << 32n) | BigInt(low);
    const gap = big(this.gapHigh, this.gapLow), range = big(this.rangeHigh, this.rangeLow), point = big(this.pointHigh, this.pointLow);
    for (let open = 7; open > 0; open--) {
      const most = (1n << BigInt(8 * open)) - 1n, tail = point & most;
      if (gap >= tail && gap + most - tail < range) return this.position - open;
    }
    return this.position;
  }
}

function minus(high, low, otherHigh, otherLow) {
  return low >= otherLow ? [high - otherHigh, low - otherLow] : [high - otherHigh - 1, low - otherLow + WORD];
}
