/** What one step computes: tokens with their places, and the rows that want a next token; typed arrays filled again every step. */
import { assert } from "../src/core/fault.ts";
import type { SamplerChain } from "./sampler.ts";

export class Batch {
  readonly capacityTokens: number;
  /** The arrays as the native call reads them, valid up to `length`. */
  readonly tokens: Int32Array;
  readonly positions: Int32Array;
  readonly sequences: Int32Array;
  readonly wanted: Int8Array;
  #length = 0;
  #wantedCount = 0;

  constructor(capacityTokens: number) {
    assert(Number.isInteger(capacityTokens) && capacityTokens > 0, "a batch holds at least one token");
    this.capacityTokens = capacityTokens;
    this.tokens = new Int32Array(capacityTokens);
    this.positions = new Int32Array(capacityTokens);
    this.sequences = new Int32Array(capacityTokens);
    this.wanted = new Int8Array(capacityTokens);
  }

  get length(): number {
    return this.#length;
  }

  /** Tokens whose logits are asked for. */
  get wantedCount(): number {
    return this.#wantedCount;
  }

  clear(): void {
    this.#length = 0;
    this.#wantedCount = 0;
  }

  /** Adds one token and returns its index. Positions of a sequence follow each other without gaps, also across steps. */
  add(token: number, position: number, sequence: number, wantLogits: boolean): number {
    const index = this.#length;
    assert(index < this.capacityTokens, "the batch has room");
    this.tokens[index] = token;
    this.positions[index] = position;
    this.sequences[index] = sequence;
    this.wanted[index] = wantLogits ? 1 : 0;
    this.#length = index + 1;
    if (wantLogits) this.#wantedCount += 1;
    return index;
  }
}

/** The rows of a step that get a next token: batch index and sampler of each, in parallel arrays. */
export class StepRows {
  readonly capacity: number;
  readonly batchIndexes: Int32Array;
  readonly samplerPointers: BigUint64Array;
  readonly #samplers: SamplerChain[] = [];
  #length = 0;

  constructor(capacity: number) {
    assert(Number.isInteger(capacity) && capacity > 0, "a step samples at least one row");
    this.capacity = capacity;
    this.batchIndexes = new Int32Array(capacity);
    this.samplerPointers = new BigUint64Array(capacity);
  }

  get length(): number {
    return this.#length;
  }

  clear(): void {
    this.#length = 0;
    this.#samplers.length = 0;
  }

  /** Adds a row and returns its place in the step's output; `batchIndex` was added to the batch with `wantLogits`. */
  add(batchIndex: number, sampler: SamplerChain): number {
    const index = this.#length;
    assert(index < this.capacity, "the step has room for the row");
    this.batchIndexes[index] = batchIndex;
    this.samplerPointers[index] = sampler.address;
    this.#samplers[index] = sampler;
    this.#length = index + 1;
    return index;
  }

  /** Throws when a row's logits are not asked for in the batch, or its sampler was closed since. */
  checkAgainst(batch: Batch): void {
    for (let row = 0; row < this.#length; row += 1) {
      const index = this.batchIndexes[row] ?? -1;
      assert(index >= 0 && index < batch.length && batch.wanted[index] === 1, "a sampled row asks for its logits");
      assert(this.#samplers[row]?.disposed === false, "a sampled row has a live sampler");
    }
  }
}
