/**
 * Shows .tsr images in any page:
 *
 *     <script type="module" src="https://example.org/viewer/tessera.js"></script>
 *     <img data-tsr="photo.tsr" alt="A harbour at dusk">
 *
 * Each such element, also one that is added later, shows the start of its file as soon as it arrives, and then the complete file.
 * With `loading="lazy"` the download waits until the element comes into view. Each step fires a `load` event, a failure an `error`
 * event. `data-tsr-state` is "loading", "done" or "failed", and `data-tsr-problem` has the reason of a failure.
 */

import { Decoder, download } from "./decoder.js";

const SELECTOR = "img[data-tsr]";
let decoder;

/** Converts a .tsr file to PNG. @param {Uint8Array | string | URL} source bytes or address of the file @returns {Promise<Blob>} */
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
      if (bytes.length === file?.info.bytes) continue; // only the news that the download is complete
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

function register(node) {
  if (!(node instanceof Element)) return;
  for (const image of [...(node.matches(SELECTOR) ? [node] : []), ...node.querySelectorAll(SELECTOR)]) {
    if (seen.has(image)) continue;
    seen.add(image);
    if (image.loading === "lazy") inView.observe(image);
    else show(image);
  }
}

new MutationObserver((changes) => changes.forEach(({ addedNodes }) => addedNodes.forEach(register))).observe(document, { childList: true, subtree: true });
register(document.documentElement);
