/** A context over a model: the KV cache with its sequences, and the one native call of a step. */
import { assert, Fault } from "../src/core/fault.ts";
import type { Batch, StepRows } from "./batch.ts";
import { Handle } from "./handle.ts";
import type { Model } from "./model.ts";
import type { Native } from "./native.ts";

/** Beyond any model; more cells than this only fill memory with their bookkeeping. */
const CONTEXT_TOKENS_MAX = 16_777_216;
/** Sequences llama.cpp can tell apart (LLAMA_MAX_SEQ). */
export const SEQUENCES_MAX = 256;

export interface ContextOptions {
  /** KV cells for all sequences together. The library may round up; see `contextTokens`. */
  readonly contextTokens: number;
  readonly sequences: number;
  /** Most tokens of one step. */
  readonly batchTokens: number;
  /** Tokens computed at once inside a step. */
  readonly microBatchTokens: number;
  readonly threads: number;
  readonly threadsBatch: number;
  /** One cache for all sequences, which lets them share cells; default true. */
  readonly kvUnified?: boolean;
  /** Most tokens of one step whose logits are asked for; default one per sequence. Costs vocabulary × 4 bytes each. */
  readonly outputsMax?: number;
}

const checkOptions = (model: Model, options: ContextOptions): void => {
  assert(!model.vocabOnly, "a context needs the weights");
  const counts = [options.contextTokens, options.sequences, options.batchTokens, options.microBatchTokens];
  for (const count of [...counts, options.threads, options.threadsBatch])
    assert(Number.isInteger(count) && count > 0 && count <= 0x7fff_ffff, "context sizes are positive integers");
  assert(options.contextTokens <= CONTEXT_TOKENS_MAX, "a context has at most 16 Mi tokens");
  assert(options.sequences <= SEQUENCES_MAX, "llama.cpp can tell 256 sequences apart");
  assert(options.batchTokens >= options.sequences, "a step has room for a token of every sequence");
  assert(options.microBatchTokens <= options.batchTokens, "a micro batch is part of a batch");
  const outputs = options.outputsMax ?? options.sequences;
  assert(outputs >= options.sequences && outputs <= options.batchTokens, "outputs between sequences and batch");
};

const openContextHandle = (model: Model, options: ContextOptions, abortFlag: Int32Array): Handle => {
  const { native } = model;
  const params = Int32Array.of(
    options.contextTokens,
    options.sequences,
    options.batchTokens,
    options.microBatchTokens,
    options.threads,
    options.threadsBatch,
    options.kvUnified === false ? 0 : 1,
    options.outputsMax ?? options.sequences,
  );
  try {
    const pointer = native.openHandle((out) =>
      native.symbols.db_context_open(model.handle.pointer, params, abortFlag, out),
    );
    return new Handle("context", pointer, (it) => native.check(native.symbols.db_context_close(it)), model.handle);
  } catch (error) {
    if (error instanceof Fault && error.reason === "load")
      throw new Fault("memory_short", `no context of ${options.contextTokens} tokens: ${error.message}`, {
        hint: "use a smaller --ctx or --parallel",
        cause: error,
      });
    throw error;
  }
};

export class Context implements Disposable {
  readonly model: Model;
  /** KV cells there are, as the library rounded them. */
  readonly contextTokens: number;
  readonly sequences: number;
  readonly batchTokens: number;
  readonly outputsMax: number;
  readonly #kvUnified: boolean;
  /** Set to 1 by anyone, also from another thread, to end a running step. Lives on shared memory. */
  readonly abortFlag: Int32Array;
  readonly #handle: Handle;
  readonly #native: Native;
  readonly #word = new Int32Array(1);
  /** Which batch indexes of the last step have logits. */
  readonly #lastWanted: Int8Array;
  #lastLength = 0;

  private constructor(model: Model, options: ContextOptions, abortFlag: Int32Array) {
    this.model = model;
    this.#native = model.native;
    this.sequences = options.sequences;
    this.batchTokens = options.batchTokens;
    this.outputsMax = options.outputsMax ?? options.sequences;
    this.#kvUnified = options.kvUnified !== false;
    this.#lastWanted = new Int8Array(options.batchTokens);
    this.abortFlag = abortFlag;
    this.#handle = openContextHandle(model, options, abortFlag);
    this.#native.check(this.#native.symbols.db_context_tokens(this.#handle.pointer, this.#word));
    this.contextTokens = this.#word[0] ?? 0;
  }

  /** Throws `memory_short` when the cache cannot be made. */
  static open(model: Model, options: ContextOptions): Context {
    checkOptions(model, options);
    return new Context(model, options, new Int32Array(new SharedArrayBuffer(4)));
  }

  /** True ends a running step with `cancelled` (reason `aborted`), and every later one until false. */
  setAbort(value: boolean): void {
    Atomics.store(this.abortFlag, 0, value ? 1 : 0);
  }

  /** Forgets positions from ≤ p < to of a sequence (to -1 = to the end); false when this model can only forget all of it. */
  removeSequence(sequence: number, fromPosition: number, toPosition: number): boolean {
    this.#checkSequence(sequence);
    const { symbols } = this.#native;
    const status = symbols.db_memory_remove(this.#handle.pointer, sequence, fromPosition, toPosition, this.#word);
    this.#native.check(status);
    return this.#word[0] === 1;
  }

  /**
   * Shares the cells of one sequence with another, without copying them. Where every sequence has a cache of its own, the whole
   * sequence is copied, and only the whole of it can be (positions 0 to -1).
   */
  copySequence(fromSequence: number, toSequence: number, fromPosition: number, toPosition: number): void {
    this.#checkSequence(fromSequence);
    this.#checkSequence(toSequence);
    assert(this.#kvUnified || (fromPosition <= 0 && toPosition < 0), "separate caches copy whole sequences");
    const { symbols } = this.#native;
    this.#native.check(
      symbols.db_memory_copy(this.#handle.pointer, fromSequence, toSequence, fromPosition, toPosition),
    );
  }

  /** Forgets every other sequence. */
  keepSequence(sequence: number): void {
    this.#checkSequence(sequence);
    this.#native.check(this.#native.symbols.db_memory_keep(this.#handle.pointer, sequence));
  }

  /** Forgets every sequence. */
  clear(): void {
    this.#native.check(this.#native.symbols.db_memory_clear(this.#handle.pointer));
  }

  /** Last position held of a sequence; -1 when it is empty. */
  sequencePositionMax(sequence: number): number {
    this.#checkSequence(sequence);
    this.#native.check(this.#native.symbols.db_memory_position_max(this.#handle.pointer, sequence, this.#word));
    return this.#word[0] ?? -1;
  }

  /**
   * Computes a batch, then samples every row and accepts its token. `outTokens[i]` is the token of row i, or -1 when its
   * grammar had no way on. Throws `memory_short` (reason `kv_full`: nothing was computed), `cancelled` (reason `aborted`:
   * part of the batch may be in the cache) or `native_failed` (reason `decode`, e.g. a gap in the positions).
   * `timing`, when given, receives nanoseconds of llama_decode and of the rest of the call.
   */
  step(batch: Batch, rows: StepRows, outTokens: Int32Array, timing: BigInt64Array | null = null): void {
    this.#checkBatch(batch);
    rows.checkAgainst(batch);
    assert(outTokens.length >= rows.length, "room for every row's token");
    const { symbols } = this.#native;
    const status = symbols.db_step(
      this.#handle.pointer,
      batch.length,
      batch.tokens,
      batch.positions,
      batch.sequences,
      batch.wanted,
      rows.length,
      rows.batchIndexes,
      rows.samplerPointers,
      outTokens,
      timing,
    );
    this.#lastLength = status === 0 ? batch.length : 0;
    this.#lastWanted.set(batch.wanted.subarray(0, this.#lastLength));
    this.#native.check(status);
  }

  /** A copy of the logits of one token of the last step. */
  logits(batchIndex: number): Float32Array {
    assert(
      batchIndex < this.#lastLength && this.#lastWanted[batchIndex] === 1,
      "logits were asked for at this index of the last step",
    );
    const out = new Float32Array(this.model.vocabSize);
    this.#native.check(this.#native.symbols.db_logits(this.#handle.pointer, batchIndex, out, out.length));
    return out;
  }

  get disposed(): boolean {
    return this.#handle.disposed;
  }

  [Symbol.dispose](): void {
    this.#handle[Symbol.dispose]();
  }

  #checkSequence(sequence: number): void {
    assert(Number.isInteger(sequence) && sequence >= 0 && sequence < this.sequences, "sequence within the context");
  }

  /** Everything llama.cpp would end the process over. */
  #checkBatch(batch: Batch): void {
    const { length } = batch;
    assert(length > 0 && length <= this.batchTokens, "a step has 1 to batchTokens tokens");
    assert(batch.wantedCount <= this.outputsMax, "logits of at most outputsMax tokens");
    const { vocabSize } = this.model;
    for (let index = 0; index < length; index += 1) {
      const token = batch.tokens[index] ?? -1;
      const sequence = batch.sequences[index] ?? -1;
      assert(token >= 0 && token < vocabSize, "token within the vocabulary");
      assert(sequence >= 0 && sequence < this.sequences, "sequence within the context");
      assert((batch.positions[index] ?? -1) >= 0, "positions start at 0");
    }
  }
}
