/** Decoding for pages: a worker with the decoder, and promises of what it answers. */

import { TsrError } from "./errors.js";

const HEADER_MAX = 29; // bytes
const BASE = new URL("./", import.meta.url).href;

export class Decoder {
  /** @param {(received: number) => void} onProgress is told how many bytes of the decoder have come, while it loads */
  constructor(onProgress = () => {}) {
    this.waiting = new Map();
    this.calls = this.handles = 0;
    this.worker = new Worker(startOf(new URL("worker.js", BASE)), { type: "module" });
    this.worker.addEventListener("message", ({ data: { id, result, error, received } }) => {
      if (received) return onProgress(received);
      const { resolve, reject } = this.waiting.get(id);
      this.waiting.delete(id);
      if (error) reject(new TsrError(error.kind, error.message));
      else resolve(result);
    });
    this.worker.addEventListener("error", () => {
      for (const { reject } of this.waiting.values()) reject(new TsrError("failed", "The decoder could not be started in this browser."));
      this.waiting.clear();
    });
  }

  /** @returns {Promise<any>} */
  ask(call, given) {
    const id = this.calls++;
    this.worker.postMessage({ id, call, base: BASE, ...given });
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
  }

  /** A file, or what there is of it. Rejects with a TsrError. @param {Uint8Array} bytes @returns {Promise<OpenFile>} */
  async open(bytes) {
    const file = new OpenFile(this, this.handles++);
    await file.update(bytes);
    return file;
  }
}

/** A file that the worker holds. `info` says what is in it. */
export class OpenFile {
  constructor(decoder, handle) {
    this.decoder = decoder;
    this.handle = handle;
  }

  /** Takes more bytes of the same file, all of them from its start. @param {Uint8Array} bytes */
  async update(bytes) {
    this.info = await this.decoder.ask("open", { bytes, handle: this.handle });
  }

  /** The image in the first so many bytes. @returns {Promise<{ png: Blob, tokens: number, blockTokens: number }>} */
  draw(size = this.info.bytes) {
    return this.decoder.ask("draw", { handle: this.handle, size });
  }

  close() {
    return this.decoder.ask("close", { handle: this.handle });
  }
}

/** The address of a module that a worker may start with: its own, or one of this page that imports it from another site. */
function startOf(url) {
  if (url.origin === location.origin) return url;
  return URL.createObjectURL(new Blob([`import ${JSON.stringify(url.href)};`], { type: "text/javascript" }));
}

/** @typedef {{ bytes: Uint8Array, total: number | null, done: boolean }} Arrived what there is of a file, and whether it is all */

/**
 * A file from the web as it comes in, from its header on. What arrives while the caller is busy is passed over for what comes
 * after it; the whole file always comes.
 * @param {string | URL} url @returns {AsyncGenerator<Arrived>}
 */
export async function* download(url) {
  let latest = null, failure = null, over = false, wake = () => {};
  (async () => {
    try {
      for await (const arrived of received(url)) {
        latest = arrived;
        wake();
      }
    } catch (error) {
      failure = error;
    }
    over = true;
    wake();
  })();
  for (;;) {
    if (failure) throw failure;
    if (latest) {
      const arrived = latest;
      latest = null;
      yield arrived;
    } else if (over) return;
    else await new Promise((resolve) => (wake = resolve));
  }
}

/** @returns {AsyncGenerator<Arrived>} */
async function* received(url) {
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new TsrError("network", "The file could not be loaded: there is no connection, or its site does not allow this page to read it.");
  }
  if (!response.ok) throw new TsrError("network", `The file could not be loaded (${`${response.status} ${response.statusText}`.trim()}).`);
  const total = response.headers.has("Content-Encoding") ? null : Number(response.headers.get("Content-Length")) || null;
  const reader = response.body.getReader();
  let bytes = new Uint8Array();
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    const longer = new Uint8Array(bytes.length + value.length);
    longer.set(bytes);
    longer.set(value, bytes.length);
    bytes = longer;
    if (bytes.length >= HEADER_MAX) yield { bytes, total, done: false };
  }
  yield { bytes, total, done: true };
}
