/** What a verification refuses with: the code and text of `aos.errors`, the same as the Python verifier's. */
export class AosError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** A check that could not be made, for the reason in its text. Never a pass. */
export class Skip extends Error {}

export function refuse(code, message) {
  return new AosError(code, message);
}
