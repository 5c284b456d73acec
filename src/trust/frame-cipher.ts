/**
 * AES-256-GCM for one direction of one attempt: nonce = u32be 0 ‖ u64be sequence, associated data = the frame header.
 * A (key, sequence) pair encrypts once, ever: the counter lives here and only rises.
 */
import { createCipheriv, createDecipheriv } from "node:crypto";
import { assert, Fault } from "../core/fault.ts";

const ALGORITHM = "aes-256-gcm";
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const KEY_BYTES = 32;
const SEQUENCE_MAX = 2 ** 32 - 1;
/** The sequence is the last field of the frame header. */
const SEQUENCE_BYTES = 4;

export interface FrameCipherOptions {
  /** 32 bytes; owned by the cipher from here on, which clears them in `wipe`. */
  readonly key: Uint8Array;
  /** A direction's key only ever seals at one end and opens at the other. */
  readonly role: "seal" | "open";
  /** First sequence; 0 unless a test wants to see the end of the counter. */
  readonly firstSequence?: number;
}

const failure = (message: string, reason: string): Fault => new Fault("encryption_failed", message, { reason });

/** Implements `FrameCipher` of `src/protocol/frames.ts`, where its contract stands. */
export class AesGcmFrameCipher {
  readonly #key: Uint8Array;
  readonly #role: "seal" | "open";
  readonly #nonce = new Uint8Array(NONCE_BYTES);
  #next: number;
  #state: "live" | "failed" | "wiped" = "live";

  constructor(options: FrameCipherOptions) {
    assert(options.key.length === KEY_BYTES, "an AES-256 key has 32 bytes");
    this.#key = options.key;
    this.#role = options.role;
    this.#next = options.firstSequence ?? 0;
  }

  get nextSequence(): number {
    return this.#next;
  }

  seal(header: Uint8Array, plaintext: Uint8Array): Uint8Array {
    assert(this.#role === "seal", "this cipher only opens");
    const nonce = this.#nonceOf(header);
    assert(sequenceOf(header) === this.#next, "a frame is sealed under the next sequence");
    // Counted first: whatever happens below, this pair is spent.
    this.#next += 1;
    const cipher = createCipheriv(ALGORITHM, this.#key, nonce);
    cipher.setAAD(header);
    const sealed = new Uint8Array(plaintext.length + TAG_BYTES);
    sealed.set(cipher.update(plaintext), 0);
    cipher.final();
    sealed.set(cipher.getAuthTag(), plaintext.length);
    return sealed;
  }

  open(header: Uint8Array, sealed: Uint8Array): Uint8Array {
    assert(this.#role === "open", "this cipher only seals");
    const nonce = this.#nonceOf(header);
    if (sequenceOf(header) !== this.#next) {
      this.#state = "failed";
      throw failure("a frame is missing, repeated or out of order", "sequence_mismatch");
    }
    const plaintext = sealed.length < TAG_BYTES ? null : this.#decrypt(nonce, header, sealed);
    if (plaintext === null) {
      this.#state = "failed";
      throw failure("a frame does not open: it was changed, or sealed for someone else", "open_failed");
    }
    this.#next += 1;
    return plaintext;
  }

  /** Clears the key. What comes later fails. */
  wipe(): void {
    this.#key.fill(0);
    this.#state = "wiped";
  }

  #decrypt(nonce: Uint8Array, header: Uint8Array, sealed: Uint8Array): Uint8Array | null {
    const end = sealed.length - TAG_BYTES;
    const decipher = createDecipheriv(ALGORITHM, this.#key, nonce, { authTagLength: TAG_BYTES });
    decipher.setAAD(header);
    decipher.setAuthTag(sealed.subarray(end));
    const plaintext = decipher.update(sealed.subarray(0, end));
    try {
      decipher.final();
    } catch {
      // The tag does not match: what update() gave is not what anyone sealed.
      plaintext.fill(0);
      return null;
    }
    return plaintext;
  }

  #nonceOf(header: Uint8Array): Uint8Array {
    if (this.#state === "failed") throw failure("an earlier frame of this attempt did not open", "open_failed");
    if (this.#state === "wiped") throw failure("the keys of this attempt are gone", "open_failed");
    if (this.#next > SEQUENCE_MAX) throw failure("the attempt has used up its sequence numbers", "sequence_mismatch");
    this.#nonce.set(header.subarray(header.length - SEQUENCE_BYTES), NONCE_BYTES - SEQUENCE_BYTES);
    return this.#nonce;
  }
}

const sequenceOf = (header: Uint8Array): number => {
  const at = header.length - SEQUENCE_BYTES;
  const high = ((header[at] ?? 0) << 8) | (header[at + 1] ?? 0);
  const low = ((header[at + 2] ?? 0) << 8) | (header[at + 3] ?? 0);
  return high * 65_536 + low;
};
