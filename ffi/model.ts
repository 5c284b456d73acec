/** A loaded GGUF file: its facts, its metadata and its tokenizer. */
import { FFIType, JSCallback } from "bun:ffi";
import { assert, Fault } from "../src/core/fault.ts";
import { MIB } from "../src/core/units.ts";
import { Handle } from "./handle.ts";
import { type Native, toCString, toSizedText } from "./native.ts";

/** Longest text one call tokenizes; four times the largest request body. */
const TEXT_BYTES_MAX = 64 * MIB;
const INFO_COUNT = 12;
const VOCAB_TYPE_NONE = 0n;

export interface ModelOptions {
  /** Layers kept on a GPU; absent or negative = all. */
  readonly gpuLayers?: number;
  /** Called on this thread with 0 to 1 while the weights load. */
  readonly onProgress?: (fraction: number) => void;
  /** Loads the tokenizer and metadata only; no context can be made of such a model. */
  readonly vocabOnly?: boolean;
}

/** What the model file itself recommends (`general.sampling.*`). */
export interface RecommendedSampling {
  readonly temperature?: number;
  readonly topP?: number;
  readonly topK?: number;
  readonly minP?: number;
}

/** All pieces of a vocabulary end to end, with the start of each. */
interface PieceTable {
  readonly bytes: Uint8Array;
  readonly offsets: Int32Array;
  readonly eog: Uint8Array;
}

interface MarkTable {
  readonly texts: readonly string[];
  readonly longestPieceBytes: number;
}

const openModelHandle = (native: Native, path: string, options: ModelOptions): Handle => {
  const { onProgress } = options;
  let thrown: unknown = null;
  const report = (fraction: number): boolean => {
    try {
      onProgress?.(fraction);
      return true;
    } catch (error) {
      // An exception cannot cross the native frames: end the load and throw it afterwards.
      thrown = error;
      return false;
    }
  };
  const callback =
    onProgress === undefined ? null : new JSCallback(report, { args: [FFIType.f32], returns: FFIType.bool });
  try {
    const pointer = native.openHandle((out) =>
      native.symbols.db_model_open(
        toCString(path),
        options.gpuLayers ?? -1,
        options.vocabOnly === true ? 1 : 0,
        callback?.ptr ?? null,
        out,
      ),
    );
    return new Handle("model", pointer, (model) => native.check(native.symbols.db_model_close(model)));
  } catch (error) {
    if (thrown !== null) throw thrown;
    if (error instanceof Fault && error.reason === "load")
      throw new Fault("model_invalid", `the model file could not be loaded: ${error.message}`, { cause: error });
    throw error;
  } finally {
    callback?.close();
  }
};

export class Model implements Disposable {
  readonly native: Native;
  /** For the wrappers of this folder: contexts, samplers and templates are children of it. */
  readonly handle: Handle;
  readonly vocabOnly: boolean;
  readonly contextTrainTokens: number;
  readonly vocabSize: number;
  readonly sizeBytes: number;
  readonly parameters: number;
  readonly layers: number;
  readonly embeddingSize: number;
  readonly hasEncoder: boolean;
  readonly hasDecoder: boolean;
  /** The state of a sequence cannot be cut at any position, only dropped whole. */
  readonly recurrent: boolean;
  /** The tokenizer puts a begin mark before every text. */
  readonly addBos: boolean;
  /** e.g. `llama 1B Q8_0`. */
  readonly description: string;
  #markTable: MarkTable | null = null;
  readonly #pieces: [PieceTable | null, PieceTable | null] = [null, null];

  private constructor(native: Native, handle: Handle, vocabOnly: boolean) {
    this.native = native;
    this.handle = handle;
    this.vocabOnly = vocabOnly;
    const info = new BigInt64Array(INFO_COUNT);
    native.check(native.symbols.db_model_info(handle.pointer, info, INFO_COUNT));
    const number = (index: number): number => Number(info[index]);
    this.contextTrainTokens = number(0);
    this.vocabSize = number(1);
    this.sizeBytes = number(2);
    this.parameters = number(3);
    this.layers = number(4);
    this.embeddingSize = number(5);
    this.hasEncoder = number(6) === 1;
    this.hasDecoder = number(7) === 1;
    this.recurrent = number(8) === 1 || number(9) === 1;
    this.addBos = number(10) === 1;
    if (info[11] === VOCAB_TYPE_NONE) throw new Fault("model_invalid", "the model file has no tokenizer");
    this.description = native.takeText((out) => native.symbols.db_model_description(handle.pointer, out)) ?? "";
  }

  /** Throws `model_invalid` with llama.cpp's own words when the file cannot be loaded, or what `onProgress` threw. */
  static open(native: Native, path: string, options: ModelOptions = {}): Model {
    const handle = openModelHandle(native, path, options);
    try {
      return new Model(native, handle, options.vocabOnly === true);
    } catch (error) {
      handle[Symbol.dispose]();
      throw error;
    }
  }

  /** A metadata value as text; null when the key is absent. */
  meta(key: string): string | null {
    const { native, handle } = this;
    return native.takeText((out) => native.symbols.db_model_meta(handle.pointer, toCString(key), out));
  }

  recommendedSampling(): RecommendedSampling {
    const { native, handle } = this;
    const texts = native.takeJson((out) => native.symbols.db_model_sampling(handle.pointer, out)) as Record<
      string,
      string
    >;
    const numbers = Object.entries(texts).map(([key, text]) => [key, Number(text)] as const);
    return Object.fromEntries(numbers.filter(([, value]) => Number.isFinite(value)));
  }

  /**
   * Tokens of a text, with begin and end marks as the file asks for; `special` reads marks such as `<|im_start|>` as tokens.
   * `tokensMax` lets a text that must come to more tokens be refused unread (`bad_request`, reason
   * `request_exceeds_context`): the library needs quadratic time for texts full of marks. A result may still be longer.
   */
  tokenize(text: string, options: { readonly special: boolean; readonly tokensMax?: number }): Int32Array {
    const { native, handle } = this;
    const { bytes, size } = toSizedText(text);
    this.#checkTokensMin(text, size, options);
    if (size > TEXT_BYTES_MAX)
      throw new Fault("bad_request", "the text is too long to tokenize", { reason: "request_exceeds_context" });
    const count = new Int32Array(1);
    // A token stands for at least one byte; the marks and a space some tokenizers put in front need a little more.
    let tokens = new Int32Array(size + 8);
    const run = (): number => {
      const special = options.special ? 1 : 0;
      native.check(native.symbols.db_tokenize(handle.pointer, bytes, size, special, tokens, tokens.length, count));
      return count[0] ?? 0;
    };
    if (run() > tokens.length) {
      tokens = new Int32Array(count[0] ?? 0);
      run();
    }
    const found = count[0] ?? 0;
    assert(found <= tokens.length, "the second call has room for every token");
    return tokens.slice(0, found);
  }

  /** Bytes of one token, a view that must not be written to; not always whole UTF-8. Marks are empty unless `special`. */
  piece(token: number, options: { readonly special?: boolean } = {}): Uint8Array {
    const table = this.#pieceTable(options.special === true);
    assert(Number.isInteger(token) && token >= 0 && token < this.vocabSize, "token within the vocabulary");
    return table.bytes.subarray(table.offsets[token], table.offsets[token + 1]);
  }

  /** True for the tokens that end an answer. */
  isEog(token: number): boolean {
    return this.#pieceTable(false).eog[token] === 1;
  }

  get disposed(): boolean {
    return this.handle.disposed;
  }

  /** Frees the model after everything made from it. */
  [Symbol.dispose](): void {
    this.handle[Symbol.dispose]();
  }

  #checkTokensMin(text: string, size: number, options: { special: boolean; tokensMax?: number }): void {
    const { tokensMax } = options;
    if (tokensMax === undefined || size <= tokensMax) return;
    const tooLong = (): Fault =>
      new Fault("bad_request", `the prompt has more than ${tokensMax} tokens`, { reason: "request_exceeds_context" });
    if (size > tokensMax * this.#marks().longestPieceBytes) throw tooLong();
    if (!options.special) return;
    let count = 0;
    for (const mark of this.#marks().texts)
      for (let at = text.indexOf(mark); at !== -1; at = text.indexOf(mark, at + mark.length)) count += 1;
    if (count > tokensMax) throw tooLong();
  }

  /** Texts that are tokens only as marks, and the size of the longest piece. */
  #marks(): MarkTable {
    if (this.#markTable !== null) return this.#markTable;
    const decoder = new TextDecoder();
    const texts: string[] = [];
    let longestPieceBytes = 1;
    for (let token = 0; token < this.vocabSize; token += 1) {
      const piece = this.piece(token, { special: true });
      longestPieceBytes = Math.max(longestPieceBytes, piece.length);
      if (piece.length > 0 && this.piece(token).length === 0) texts.push(decoder.decode(piece));
    }
    this.#markTable = { texts, longestPieceBytes };
    return this.#markTable;
  }

  #pieceTable(special: boolean): PieceTable {
    const index = special ? 1 : 0;
    const pointer = this.handle.pointer;
    const known = this.#pieces[index];
    if (known !== null) return known;
    const offsets = new Int32Array(this.vocabSize + 1);
    const eog = new Uint8Array(this.vocabSize);
    const { native } = this;
    const bytes = native.takeBytes((out) => native.symbols.db_pieces(pointer, index, offsets, eog, out));
    const table = { bytes: bytes ?? new Uint8Array(0), offsets, eog };
    this.#pieces[index] = table;
    return table;
  }
}
