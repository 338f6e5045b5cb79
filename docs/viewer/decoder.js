/** Decoding for pages: runs the decoder in a worker. */

import { bytesAllowed } from "./container.js";
import { TsrError } from "./errors.js";

export const HEADER_MAX = 29; // bytes
const ROOM = 2 ** 16; // bytes at first for a download
const BASE = new URL("./", import.meta.url).href;

export class Decoder {
  /** @param {(received: number) => void} onProgress is called with the bytes of the decoder received so far */
  constructor(onProgress = () => {}) {
    this.waiting = new Map();
    this.calls = this.handles = 0;
    this.worker = new Worker(workerUrl(new URL("worker.js", BASE)), { type: "module" });
    this.worker.addEventListener("message", ({ data: { id, result, error, received } }) => {
      if (received) return onProgress(received);
      const { resolve, reject } = this.waiting.get(id);
      this.waiting.delete(id);
      if (error) reject(new TsrError(error.kind, error.message));
      else resolve(result);
    });
    this.worker.addEventListener("error", () => {
      for (const { reject } of this.waiting.values()) reject(new TsrError("failed", "The decoder does not start in this browser."));
      this.waiting.clear();
    });
  }

  /** @returns {Promise<any>} */
  request(call, options) {
    const id = this.calls++;
    this.worker.postMessage({ id, call, base: BASE, ...options });
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
  }

  /** Opens a complete or partial file. Rejects with a TsrError. @param {Uint8Array} bytes @returns {Promise<OpenFile>} */
  async open(bytes) {
    const file = new OpenFile(this, this.handles++);
    await file.update(bytes);
    return file;
  }
}

/** A file in the worker. `info` describes its content. */
export class OpenFile {
  constructor(decoder, handle) {
    this.decoder = decoder;
    this.handle = handle;
  }

  /** Replaces the bytes of the file by more of them, from its start. @param {Uint8Array} bytes */
  async update(bytes) {
    this.info = await this.decoder.request("open", { bytes, handle: this.handle });
  }

  /**
   * The image in the first `size` bytes, with texture of strength `detail` (0 to 1; by default that of the model).
   * @returns {Promise<{ png: Blob, tokens: number, blockTokens: number }>}
   */
  draw(size = this.info.bytes, detail = undefined) {
    return this.decoder.request("draw", { handle: this.handle, size, detail });
  }

  close() {
    return this.decoder.request("close", { handle: this.handle });
  }
}

/** The address of a worker's module. Through a blob, the worker has the content security policy of the page, and may be of another site. */
function workerUrl(url) {
  return URL.createObjectURL(new Blob([`import ${JSON.stringify(url.href)};`], { type: "text/javascript" }));
}

/** @typedef {{ bytes: Uint8Array, total: number | null, done: boolean }} Download the bytes so far, and whether they are all */

/**
 * Downloads a file and yields its bytes so far, from its header on. A caller that is busy misses intermediate states, but always
 * gets the complete file. The download ends early if the caller stops, or if the file is longer than its header allows.
 * @param {string | URL} url @returns {AsyncGenerator<Download>}
 */
export async function* download(url) {
  let latest = null, failure = null, finished = false, wake = () => {};
  const stop = new AbortController();
  (async () => {
    try {
      for await (const state of chunksOf(url, stop.signal)) {
        latest = state;
        wake();
      }
    } catch (error) {
      failure = error;
    }
    finished = true;
    wake();
  })();
  try {
    for (;;) {
      if (failure) throw failure;
      if (latest) {
        const state = latest;
        latest = null;
        yield state;
      } else if (finished) return;
      else await new Promise((resolve) => (wake = resolve));
    }
  } finally {
    stop.abort();
  }
}

/** @returns {AsyncGenerator<Download>} */
async function* chunksOf(url, signal) {
  let response;
  try {
    response = await fetch(url, { signal });
  } catch {
    throw new TsrError("network", "The file could not be loaded: there is no connection, or its site does not allow other pages to read it.");
  }
  if (!response.ok) throw new TsrError("network", `The file could not be loaded (${`${response.status} ${response.statusText}`.trim()}).`);
  const total = response.headers.has("Content-Encoding") ? null : Number(response.headers.get("Content-Length")) || null;
  const reader = response.body.getReader();
  let room = new Uint8Array(ROOM), size = 0, sizeMax = Infinity;
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    if (size + value.length > room.length) {
      const larger = new Uint8Array(Math.max(2 * room.length, size + value.length)); // so that each byte is copied about once
      larger.set(room.subarray(0, size));
      room = larger;
    }
    room.set(value, size);
    size += value.length;
    if (size < HEADER_MAX) continue;
    if (sizeMax === Infinity) sizeMax = bytesAllowed(room.subarray(0, size));
    if (size > sizeMax) throw new TsrError("damaged", "The file has bytes after its end.");
    yield { bytes: room.subarray(0, size), total, done: false };
  }
  yield { bytes: room.subarray(0, size), total, done: true };
}
