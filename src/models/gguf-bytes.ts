/** Reads a file forwards in small blocks, never past a given end, and says where it stood when something was wrong. */
import { readSync } from "node:fs";
import { Fault } from "../core/fault.ts";

const BLOCK_BYTES = 256 * 1024;

export const modelInvalid = (path: string, what: string, hint = "download the file again, or convert it anew"): Fault =>
  new Fault("model_invalid", `${path} is not a usable GGUF model: ${what}`, { hint });

/**
 * Synchronous on purpose: a header is hundreds of thousands of tiny values, and a promise for each would cost more
 * than the reading. The caller owns the descriptor.
 */
export class ByteReader {
  readonly path: string;
  readonly endOffset: number;
  readonly #descriptor: number;
  #block: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  #view = new DataView(this.#block.buffer);
  #blockOffset = 0;
  #at = 0;

  /** `endOffset` is the first byte that must not be read: the file's size, or a bound below it. */
  constructor(descriptor: number, path: string, endOffset: number) {
    this.#descriptor = descriptor;
    this.path = path;
    this.endOffset = endOffset;
  }

  get offset(): number {
    return this.#blockOffset + this.#at;
  }

  get remaining(): number {
    return this.endOffset - this.offset;
  }

  fail(what: string): never {
    throw modelInvalid(this.path, `${what} (at byte ${this.offset})`);
  }

  // Taking comes first: it may replace the view.
  u8(what: string): number {
    const at = this.#take(1, what);
    return this.#view.getUint8(at);
  }
  i8(what: string): number {
    const at = this.#take(1, what);
    return this.#view.getInt8(at);
  }
  u16(what: string): number {
    const at = this.#take(2, what);
    return this.#view.getUint16(at, true);
  }
  i16(what: string): number {
    const at = this.#take(2, what);
    return this.#view.getInt16(at, true);
  }
  u32(what: string): number {
    const at = this.#take(4, what);
    return this.#view.getUint32(at, true);
  }
  i32(what: string): number {
    const at = this.#take(4, what);
    return this.#view.getInt32(at, true);
  }
  f32(what: string): number {
    const at = this.#take(4, what);
    return this.#view.getFloat32(at, true);
  }
  f64(what: string): number {
    const at = this.#take(8, what);
    return this.#view.getFloat64(at, true);
  }
  u64(what: string): bigint {
    const at = this.#take(8, what);
    return this.#view.getBigUint64(at, true);
  }
  i64(what: string): bigint {
    const at = this.#take(8, what);
    return this.#view.getBigInt64(at, true);
  }

  /** A 64-bit count or length as a number; refused above the bound, before anything is allocated for it. */
  count(what: string, countMax: number): number {
    const low = this.u32(what);
    const value = this.u32(what) * 2 ** 32 + low;
    if (value > countMax) this.fail(`${what} ${value} is over the limit of ${countMax}`);
    return value;
  }

  /** The next bytes; a view that is valid until the next read when they lie in the current block. */
  bytes(length: number, what: string): Uint8Array {
    if (length > this.remaining) this.fail(`${what} ends past the end of the header`);
    if (length <= BLOCK_BYTES) {
      const start = this.#take(length, what);
      return this.#block.subarray(start, start + length);
    }
    const out = new Uint8Array(length);
    for (let done = 0; done < length;) {
      const part = this.bytes(Math.min(BLOCK_BYTES, length - done), what);
      out.set(part, done);
      done += part.length;
    }
    return out;
  }

  skip(length: number, what: string): void {
    if (length > this.remaining) this.fail(`${what} ends past the end of the header`);
    const at = this.#at + length;
    if (at <= this.#block.length) {
      this.#at = at;
      return;
    }
    this.#blockOffset += at;
    this.#setBlock(new Uint8Array(0));
  }

  #setBlock(block: Uint8Array<ArrayBuffer>): void {
    this.#block = block;
    this.#view = new DataView(block.buffer, block.byteOffset, block.byteLength);
    this.#at = 0;
  }

  /** Makes the next `length` bytes available, moves past them and returns where in the block they start. */
  #take(length: number, what: string): number {
    if (this.#at + length > this.#block.length) this.#refill(length, what);
    const start = this.#at;
    this.#at += length;
    return start;
  }

  #refill(length: number, what: string): void {
    if (length > this.remaining) this.fail(`${what} ends past the end of the header`);
    const offset = this.offset;
    const block = new Uint8Array(Math.min(BLOCK_BYTES, this.endOffset - offset));
    let filled = 0;
    while (filled < block.length) {
      const read = readSync(this.#descriptor, block, filled, block.length - filled, offset + filled);
      // The file shrank while it was read.
      if (read === 0) this.fail(`${what} could not be read`);
      filled += read;
    }
    this.#blockOffset = offset;
    this.#setBlock(block);
  }
}
