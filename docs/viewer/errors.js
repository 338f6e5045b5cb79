/** The reason why a file cannot be shown. `kind` is "format" (not a .tsr file, from a later release, or with a reference), "damaged", "cut" (too short
 * to show anything), "model" (made with a model that this page does not have), "large" (too many pixels), "network" or "failed". */
export class TsrError extends Error {
  /** @param {string} kind @param {string} message one sentence, for people */
  constructor(kind, message) {
    super(message);
    this.name = "TsrError";
    this.kind = kind;
  }
}
