/** A wrapper for prompts and completions that no logger, JSON encoder or template string can open by accident. */

const LABEL = "[sealed]";

export class Sealed<T> {
  readonly #value: T;

  constructor(value: T) {
    this.#value = value;
  }

  /** The one deliberate way in. Callers keep the result out of logs, errors and disk. */
  open(): T {
    return this.#value;
  }

  toJSON(): string {
    return LABEL;
  }

  toString(): string {
    return LABEL;
  }

  [Symbol.toPrimitive](): string {
    return LABEL;
  }

  [Symbol.for("nodejs.util.inspect.custom")](): string {
    return LABEL;
  }
}
