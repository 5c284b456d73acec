/** Writes small GGUF files, sound or broken on purpose, for tests. */
import { GGUF_TYPES, TENSOR_TYPES, type GgufType } from "../../src/models/gguf-types.ts";

type Scalar = number | bigint | boolean | string | Uint8Array;
export type Value = { type: GgufType; value: Scalar } | { type: "array"; itemType: GgufType; items: Scalar[] };

export interface TensorSpec {
  name: string;
  dimensions: (number | bigint)[];
  type: number;
  /** Absent = where the previous tensor ends, aligned. */
  offset?: number | bigint;
}

export interface GgufSpec {
  magic: string;
  version: number;
  metadata: [string, Value][];
  tensors: TensorSpec[];
  alignment: number;
  tensorCount?: bigint;
  metadataCount?: bigint;
}

class Writer {
  readonly parts: Uint8Array[] = [];
  length = 0;
  add(bytes: Uint8Array): void {
    this.parts.push(bytes);
    this.length += bytes.length;
  }
  number(type: GgufType, value: number | bigint): void {
    const view = new DataView(new ArrayBuffer(8));
    const put: Partial<Record<GgufType, [() => void, number]>> = {
      u8: [() => view.setUint8(0, Number(value)), 1],
      i8: [() => view.setInt8(0, Number(value)), 1],
      bool: [() => view.setUint8(0, Number(value)), 1],
      u16: [() => view.setUint16(0, Number(value), true), 2],
      i16: [() => view.setInt16(0, Number(value), true), 2],
      u32: [() => view.setUint32(0, Number(value), true), 4],
      i32: [() => view.setInt32(0, Number(value), true), 4],
      f32: [() => view.setFloat32(0, Number(value), true), 4],
      f64: [() => view.setFloat64(0, Number(value), true), 8],
      u64: [() => view.setBigUint64(0, BigInt(value), true), 8],
      i64: [() => view.setBigInt64(0, BigInt(value), true), 8],
    };
    const [write, bytes] = put[type]!;
    write();
    this.add(new Uint8Array(view.buffer, 0, bytes));
  }
  text(value: string | Uint8Array): void {
    const bytes = typeof value === "string" ? Buffer.from(value) : value;
    this.number("u64", bytes.length);
    this.add(bytes);
  }
  scalar(type: GgufType, value: Scalar): void {
    if (typeof value === "string" || value instanceof Uint8Array) this.text(value);
    else this.number(type, typeof value === "boolean" ? Number(value) : value);
  }
}

const u32 = (value: number): Value => ({ type: "u32", value });
const f32 = (value: number): Value => ({ type: "f32", value });
export const text = (value: string): Value => ({ type: "string", value });
export const bool = (value: boolean): Value => ({ type: "bool", value });
export const list = (itemType: GgufType, items: Scalar[]): Value => ({ type: "array", itemType, items });
export { f32, u32 };

/** A model of two layers, 64 wide, 2 heads of 32 (one for keys and values), 16 tokens. */
export const smallModel = (): GgufSpec => ({
  magic: "GGUF",
  version: 3,
  alignment: 32,
  metadata: [
    ["general.architecture", text("llama")],
    ["general.name", text("Small")],
    ["llama.context_length", u32(128)],
    ["llama.embedding_length", u32(64)],
    ["llama.block_count", u32(2)],
    ["llama.feed_forward_length", u32(96)],
    ["llama.attention.head_count", u32(2)],
    ["llama.attention.head_count_kv", u32(1)],
    ["llama.attention.layer_norm_rms_epsilon", f32(1e-5)],
    ["llama.rope.dimension_count", u32(32)],
    ["tokenizer.ggml.model", text("gpt2")],
    ["tokenizer.ggml.pre", text("qwen2")],
    [
      "tokenizer.ggml.tokens",
      list(
        "string",
        Array.from({ length: 16 }, (_, index) => `t${index}`),
      ),
    ],
    [
      "tokenizer.ggml.token_type",
      list(
        "i32",
        Array.from({ length: 16 }, () => 1),
      ),
    ],
    ["tokenizer.ggml.merges", list("string", ["t 1", "t 2"])],
    ["tokenizer.chat_template", text("{{ messages }}")],
  ],
  tensors: [
    { name: "token_embd.weight", dimensions: [64, 16], type: 8 },
    { name: "output_norm.weight", dimensions: [64], type: 0 },
    { name: "blk.0.attn_q.weight", dimensions: [64, 64], type: 8 },
    { name: "blk.1.attn_q.weight", dimensions: [64, 64], type: 8 },
  ],
});

/** Sets, replaces or (with null) removes a key. */
export const withKey = (spec: GgufSpec, key: string, value: Value | null): GgufSpec => {
  const metadata = spec.metadata.filter(([name]) => name !== key);
  return { ...spec, metadata: value === null ? metadata : [...metadata, [key, value]] };
};

export const withTensor = (spec: GgufSpec, index: number, change: Partial<TensorSpec>): GgufSpec => ({
  ...spec,
  tensors: spec.tensors.map((tensor, at) => (at === index ? { ...tensor, ...change } : tensor)),
});

const align = (value: number, alignment: number): number => Math.ceil(value / alignment) * alignment;

const sizeOf = (tensor: TensorSpec): number => {
  const type = TENSOR_TYPES.get(tensor.type);
  const elements = tensor.dimensions.reduce<number>((product, size) => product * Number(size), 1);
  return type === undefined || !Number.isSafeInteger(elements) ? 0 : (elements / type.blockElements) * type.blockBytes;
};

/** The file's bytes: header, padding, and tensor data of zeros (none for sizes that are absurd). */
export const buildGguf = (spec: GgufSpec): Uint8Array => {
  const out = new Writer();
  out.add(Buffer.from(spec.magic, "latin1"));
  out.number("u32", spec.version);
  out.number("u64", spec.tensorCount ?? spec.tensors.length);
  out.number("u64", spec.metadataCount ?? spec.metadata.length);
  for (const [key, value] of spec.metadata) {
    out.text(key);
    out.number("u32", GGUF_TYPES.indexOf(value.type));
    if ("items" in value) {
      out.number("u32", GGUF_TYPES.indexOf(value.itemType));
      out.number("u64", value.items.length);
      for (const item of value.items) out.scalar(value.itemType, item);
    } else out.scalar(value.type, value.value);
  }
  let next = 0;
  for (const tensor of spec.tensors) {
    out.text(tensor.name);
    out.number("u32", tensor.dimensions.length);
    for (const size of tensor.dimensions) out.number("u64", size);
    out.number("u32", tensor.type);
    out.number("u64", tensor.offset ?? next);
    next = align(next + sizeOf(tensor), spec.alignment);
  }
  out.add(new Uint8Array(align(out.length, spec.alignment) - out.length));
  out.add(new Uint8Array(next > 2 ** 24 ? 0 : next));
  return Buffer.concat(out.parts);
};
