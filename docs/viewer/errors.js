/** What a file or a model is refused for. `kind` says which: "format" (no .tsr file, or of a later release), "damaged", "cut"
 * (too short to show anything), "model" (another model's), "large" (more pixels than this page takes). */
export class TsrError extends Error {
  /** @param {string} kind @param {string} message one sentence, for people */
  constructor(kind, message) {
    super(message);
    this.name = "TsrError";
    this.kind = kind;
  }
}
