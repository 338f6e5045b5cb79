/**
 * Shows .tsr images in any page:
 *
 *     <script type="module" src="https://example.org/viewer/tessera.js"></script>
 *     <img data-tsr="photo.tsr" alt="A harbour at dusk">
 *
 * Each such image, also one that is added later, becomes the image: first what the beginning of its file holds, then all of it.
 * `loading="lazy"` waits until it comes into view. A `load` event follows each step, and an `error` event what cannot be shown;
 * `data-tsr-state` is then "loading", "done" or "failed", and the reason is in `data-tsr-problem`.
 */

import { Decoder, download } from "./decoder.js";

const SELECTOR = "img[data-tsr]";
let decoder;

/** A .tsr file as a PNG file. @param {Uint8Array | string | URL} source its bytes or its address @returns {Promise<Blob>} */
export async function decode(source) {
  let bytes = source;
  if (!(source instanceof Uint8Array)) for await (const chunk of download(source)) ({ bytes } = chunk);
  const file = await (decoder ??= new Decoder()).open(bytes);
  try {
    return (await file.draw()).png;
  } finally {
    file.close();
  }
}

async function show(image) {
  image.dataset.tsrState = "loading";
  let file = null;
  try {
    for await (const { bytes } of download(new URL(image.dataset.tsr, document.baseURI))) {
      if (bytes.length === file?.info.bytes) continue; // nothing new, but that it was all
      if (file) await file.update(bytes);
      else file = await (decoder ??= new Decoder()).open(bytes);
      const { width, height } = file.info;
      if (!image.hasAttribute("width") && !image.hasAttribute("height")) Object.assign(image, { width, height });
      const before = image.src, { png } = await file.draw();
      image.src = URL.createObjectURL(png);
      if (before.startsWith("blob:")) URL.revokeObjectURL(before);
    }
    image.dataset.tsrState = "done";
  } catch (error) {
    image.dataset.tsrState = "failed";
    image.dataset.tsrProblem = error.message;
    image.dispatchEvent(new Event("error"));
  } finally {
    file?.close();
  }
}

const seen = new WeakSet();
const inView = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    inView.unobserve(target);
    show(target);
  }
}, { rootMargin: "200px" });

function take(node) {
  if (!(node instanceof Element)) return;
  for (const image of [...(node.matches(SELECTOR) ? [node] : []), ...node.querySelectorAll(SELECTOR)]) {
    if (seen.has(image)) continue;
    seen.add(image);
    if (image.loading === "lazy") inView.observe(image);
    else show(image);
  }
}

new MutationObserver((changes) => changes.forEach(({ addedNodes }) => addedNodes.forEach(take))).observe(document, { childList: true, subtree: true });
take(document.documentElement);
