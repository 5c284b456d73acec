/**
 * How much memory a model needs, from its header alone: for the picker and the catalog, where nothing is loaded yet.
 * Weights and key/value cache are exact for attention models; the compute part was fitted to what llama.cpp v0.4.0
 * reports for llama-shaped models with flash attention (equal to within 100 bytes on dense and expert shapes from
 * 3 M to 47 B parameters). Where an architecture does something smaller, the larger figure stands.
 */
import { arrayAt, numberAt, perLayer, type GgufHeader } from "./gguf.ts";
import { describeGguf, type GgufDescription } from "./gguf-describe.ts";

export interface MemoryNeed {
  readonly weightsBytes: number;
  /** Keys and values of all rows. */
  readonly kvBytes: number;
  readonly kvBytesPerToken: number;
  /** Fixed state of recurrent layers, per row. */
  readonly recurrentBytes: number;
  readonly computeBytes: number;
  readonly totalBytes: number;
  /** `sliding_window`: counted as if every layer kept the whole context. `recurrent`: counted as if every layer kept both kinds of state. */
  readonly conservative: readonly ("sliding_window" | "recurrent")[];
}

export interface MemoryShape {
  readonly header: GgufHeader;
  /** Tokens of one request, prompt and answer. */
  readonly contextTokens: number;
  readonly rows: number;
  /** Bytes of one key or value; 2 = f16. */
  readonly kvValueBytes?: number;
  /** Tokens computed at once. */
  readonly microBatchTokens?: number;
}

export interface MemoryFit extends MemoryNeed {
  readonly fits: boolean;
  readonly availableBytes: number;
  /** Largest context per row that fits, a multiple of 256; 0 = not even that. */
  readonly contextTokensMax: number;
}

const KV_VALUE_BYTES = 2;
const MICRO_BATCH_TOKENS = 512;
/** The library rounds the number of each row's cache cells up to this. */
const CELLS_STEP = 256;
const FLOAT_BYTES = 4;
/** One f16 of attention mask per cell and token of a micro batch. */
const MASK_BYTES = 2;
/** Positions and sequence ids of a token in the graph. */
const TOKEN_INDEX_BYTES = 24;

const numberOf = (header: GgufHeader, model: GgufDescription, name: string): number =>
  numberAt(header, `${model.architecture}.${name}`) ?? 0;

const kvValuesPerToken = (header: GgufHeader, model: GgufDescription): number => {
  const keyLength = Math.max(model.keyLength, numberOf(header, model, "attention.key_length_swa"));
  const valueLength = Math.max(model.valueLength, numberOf(header, model, "attention.value_length_swa"));
  // The last layers of some models read the cache of earlier ones.
  const own = model.headsKv.slice(0, model.layers - numberOf(header, model, "attention.shared_kv_layers"));
  return own.reduce((sum, heads) => sum + heads * (keyLength + valueLength), 0);
};

/** State-space and RWKV layers keep a state of fixed size per row; every layer counts as one. */
const recurrentBytesPerRow = (header: GgufHeader, model: GgufDescription): number => {
  const number = (name: string): number => numberOf(header, model, name);
  const inner = number("ssm.inner_size");
  const state = number("ssm.state_size");
  const convolution = Math.max(0, number("ssm.conv_kernel") - 1) * (inner + 2 * number("ssm.group_count") * state);
  const wkv = model.embedding * (number("wkv.head_size") + number("token_shift_count"));
  const short = model.embedding * Math.max(0, number("shortconv.l_cache") - 1);
  return model.layers * (inner * state + convolution + wkv + short) * FLOAT_BYTES;
};

/** Widest feed-forward step of any layer: a dense one, or the experts a token uses and the shared ones. */
const feedForwardWidth = (header: GgufHeader, model: GgufDescription): number => {
  const widest = (name: string): number =>
    Math.max(0, ...(perLayer(header, `${model.architecture}.${name}`, model.layers) ?? []));
  const dense = widest("feed_forward_length");
  if (numberOf(header, model, "expert_count") === 0) return dense;
  const expert = widest("expert_feed_forward_length") || dense;
  const shared =
    numberOf(header, model, "expert_shared_feed_forward_length") ||
    numberOf(header, model, "expert_shared_count") * expert;
  return Math.max(dense, widest("expert_used_count") * expert + shared);
};

const computeBytes = (shape: MemoryShape, model: GgufDescription, cells: number): number => {
  const { header, rows } = shape;
  const attention = Math.max(0, ...model.heads) * model.keyLength + Math.max(0, ...model.headsKv) * model.keyLength;
  const widest = Math.max(3 * feedForwardWidth(header, model), 3 * attention);
  const perToken = MASK_BYTES * cells + FLOAT_BYTES * (widest + 4 * model.embedding) + TOKEN_INDEX_BYTES;
  const vocabulary = arrayAt(header, "tokenizer.ggml.tokens")?.count ?? 0;
  // Logits of one token per row, once in the graph and once where the sampler reads them.
  const logits = rows * FLOAT_BYTES * vocabulary;
  const microBatch = shape.microBatchTokens ?? MICRO_BATCH_TOKENS;
  return Math.max(microBatch * perToken, logits + rows * FLOAT_BYTES * 2 * model.embedding) + logits;
};

const cellsOf = ({ contextTokens, rows }: MemoryShape): number =>
  Math.ceil(contextTokens / CELLS_STEP) * CELLS_STEP * rows;

/** Memory of a model that serves `rows` requests of `contextTokens` each side by side. */
export const memoryNeed = (shape: MemoryShape): MemoryNeed => {
  const { header, rows } = shape;
  const model = describeGguf(header);
  const cells = cellsOf(shape);
  const kvBytesPerToken = kvValuesPerToken(header, model) * (shape.kvValueBytes ?? KV_VALUE_BYTES);
  const kvBytes = kvBytesPerToken * cells;
  const recurrentBytes = recurrentBytesPerRow(header, model) * rows;
  const compute = computeBytes(shape, model, cells);
  const conservative: MemoryNeed["conservative"][number][] = [];
  if (numberOf(header, model, "attention.sliding_window") > 0) conservative.push("sliding_window");
  if (recurrentBytes > 0) conservative.push("recurrent");
  return {
    weightsBytes: model.weightsBytes,
    kvBytes,
    kvBytesPerToken,
    recurrentBytes,
    computeBytes: compute,
    totalBytes: model.weightsBytes + kvBytes + recurrentBytes + compute,
    conservative,
  };
};

/** Everything but the weights grows evenly with the context, so the largest one is found by halving. */
const contextThatFits = (shape: MemoryShape, availableBytes: number): number => {
  const fits = (steps: number): boolean =>
    memoryNeed({ ...shape, contextTokens: steps * CELLS_STEP }).totalBytes <= availableBytes;
  const trained = describeGguf(shape.header).contextTokens;
  let low = 0;
  let high = Math.floor(Math.max(trained, shape.contextTokens) / CELLS_STEP);
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (fits(middle)) low = middle;
    else high = middle - 1;
  }
  return low * CELLS_STEP;
};

/** Whether a model fits into the memory there is, with the parts that say why. */
export const memoryFit = (shape: MemoryShape & { readonly availableBytes: number }): MemoryFit => {
  const need = memoryNeed(shape);
  const { availableBytes } = shape;
  return {
    ...need,
    availableBytes,
    fits: need.totalBytes <= availableBytes,
    contextTokensMax: contextThatFits(shape, availableBytes),
  };
};
