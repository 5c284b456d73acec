/** Text that comes in pieces: bytes to characters without tearing one, and an end at the first stop string. */

export interface StopMatch {
  /** What may be shown now. */
  readonly text: string;
  /** A stop string was completed; nothing after it is ever shown. */
  readonly stopped: boolean;
}

/**
 * Ends a streamed text at the stop string that is completed first (of those completed by the same character, the longest).
 * Holds back only text that may still become a stop string, so the outcome does not depend on where the pieces are cut.
 */
export class StopMatcher {
  readonly #stops: readonly string[];
  readonly #heldMax: number;
  #held = "";
  #stopped = false;

  constructor(stops: readonly string[]) {
    // Decoded text is well formed, so a stop string with half a character can never occur in it.
    this.#stops = stops.filter((stop) => stop !== "" && stop.isWellFormed());
    this.#heldMax = this.#stops.reduce((longest, stop) => Math.max(longest, stop.length), 1) - 1;
  }

  push(piece: string): StopMatch {
    if (this.#stopped) return { text: "", stopped: true };
    if (this.#stops.length === 0) return { text: piece, stopped: false };
    const text = this.#held + piece;
    const start = this.#findStop(text);
    if (start !== -1) {
      this.#stopped = true;
      this.#held = "";
      return { text: text.slice(0, start), stopped: true };
    }
    const keep = this.#heldLength(text);
    this.#held = text.slice(text.length - keep);
    return { text: text.slice(0, text.length - keep), stopped: false };
  }

  /** The answer ended by itself: what was held back turned out to be text. */
  flush(): string {
    const text = this.#held;
    this.#held = "";
    return text;
  }

  #findStop(text: string): number {
    let start = -1;
    let end = Infinity;
    for (const stop of this.#stops) {
      const at = text.indexOf(stop);
      if (at === -1) continue;
      const stopEnd = at + stop.length;
      if (stopEnd < end || (stopEnd === end && at < start)) {
        start = at;
        end = stopEnd;
      }
    }
    return start;
  }

  #heldLength(text: string): number {
    for (let length = Math.min(this.#heldMax, text.length); length > 0; length -= 1) {
      const tail = text.slice(text.length - length);
      for (const stop of this.#stops) if (stop.length > length && stop.startsWith(tail)) return length;
    }
    return 0;
  }
}

/** Bytes of token pieces to text: a character whose bytes span tokens comes out whole; invalid bytes become U+FFFD. */
export class Utf8Stream {
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #clean = true;

  /** True while no unfinished character is held, so that a complete piece may be used as it is. */
  get clean(): boolean {
    return this.#clean;
  }

  push(bytes: Uint8Array): string {
    const text = this.#decoder.decode(bytes, { stream: true });
    this.#clean = !endsInsideCharacter(bytes, this.#clean);
    return text;
  }

  flush(): string {
    this.#clean = true;
    return this.#decoder.decode();
  }
}

/** Whether the last bytes may begin a character that is not complete; errs towards true, which only costs the short cut. */
const endsInsideCharacter = (bytes: Uint8Array, wasClean: boolean): boolean => {
  const last = bytes.at(-1);
  return last === undefined ? !wasClean : last >= 0x80;
};

/** The text of a piece that stands alone; null when it begins or ends inside a character. */
export const completeText = (bytes: Uint8Array): string | null => {
  try {
    return new TextDecoder("utf-8", { ignoreBOM: true, fatal: true }).decode(bytes);
  } catch (error) {
    if (error instanceof TypeError) return null;
    throw error;
  }
};
