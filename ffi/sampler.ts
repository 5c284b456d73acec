/** The sampler of one row: upstream's own chain, so that a row samples as llama-server would (see `shim/sampler.cpp`). */
import { assert } from "../src/core/fault.ts";
import { Handle } from "./handle.ts";
import type { Model } from "./model.ts";
import { toSizedText } from "./native.ts";

/** A grammar as the chat layer made it; only passed on. */
export interface ChatGrammar {
  readonly text: string;
  /** True: the grammar sleeps until a trigger appears in the answer. */
  readonly lazy: boolean;
  readonly generationPrompt: string;
  readonly triggers: readonly { readonly type: number; readonly value: string; readonly token: number }[];
  readonly preservedTokens: readonly number[];
  readonly thinkingStart: string;
  readonly thinkingEnds: readonly string[];
}

export interface SamplerOptions {
  /** 0 = always the likeliest token. */
  readonly temperature: number;
  /** 0 = no limit. */
  readonly topK: number;
  /** 1 = off. */
  readonly topP: number;
  /** 0 = off. */
  readonly minP: number;
  /** null = random. Only 32 bits count. */
  readonly seed: number | null;
  /** Tokens that end an answer are never chosen. */
  readonly ignoreEos?: boolean;
  readonly grammar?: ChatGrammar | null;
}

/** The one seed value that llama.cpp reads as "random". */
const SEED_RANDOM = 0xffff_ffff;

/** Any integer, also one beyond those a number holds exactly, to a 32-bit seed that is not the random one: its low bits. */
const toSeed = (seed: number | null): number => {
  if (seed === null) return SEED_RANDOM;
  assert(Number.isInteger(seed), "a seed is an integer");
  const low = Number(BigInt.asUintN(32, BigInt(seed)));
  return low === SEED_RANDOM ? 0 : low;
};

const checkOptions = (options: SamplerOptions): void => {
  assert(Number.isFinite(options.temperature) && options.temperature >= 0, "temperature is 0 or more");
  assert(Number.isInteger(options.topK) && options.topK >= 0 && options.topK <= 0x7fff_ffff, "topK is 0 or more");
  assert(options.topP >= 0 && options.topP <= 1, "topP is between 0 and 1");
  assert(options.minP >= 0 && options.minP <= 1, "minP is between 0 and 1");
};

export class SamplerChain implements Disposable {
  readonly #handle: Handle;
  readonly #model: Model;
  readonly #address: bigint;

  private constructor(model: Model, handle: Handle) {
    this.#model = model;
    this.#handle = handle;
    this.#address = BigInt(handle.pointer);
  }

  /** Throws `bad_request` (reason `grammar`) when the grammar cannot be compiled. */
  static open(model: Model, options: SamplerOptions): SamplerChain {
    checkOptions(options);
    const { native } = model;
    const { grammar } = options;
    const text = JSON.stringify({
      temperature: options.temperature,
      topK: options.topK,
      topP: options.topP,
      minP: options.minP,
      seed: toSeed(options.seed),
      ignoreEos: options.ignoreEos === true,
      ...(grammar === undefined || grammar === null ? {} : { grammar }),
    });
    const { bytes, size } = toSizedText(text);
    const pointer = native.openHandle((out) => native.symbols.db_sampler_open(model.handle.pointer, bytes, size, out));
    const close = (sampler: typeof pointer): void => native.check(native.symbols.db_sampler_close(sampler));
    return new SamplerChain(model, new Handle("sampler", pointer, close, model.handle));
  }

  /** For the step call; throws `disposed` once closed. */
  get address(): bigint {
    assert(this.#handle.pointer !== 0, "a live sampler has an address");
    return this.#address;
  }

  get disposed(): boolean {
    return this.#handle.disposed;
  }

  /** Forgets the tokens seen and starts the random sequence of the seed again. */
  reset(): void {
    const { native } = this.#model;
    native.check(native.symbols.db_sampler_reset(this.#handle.pointer));
  }

  [Symbol.dispose](): void {
    this.#handle[Symbol.dispose]();
  }
}
