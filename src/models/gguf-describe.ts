/** What people and other parts want to know about a model file, from its header alone. */
import { numberAt, perLayer, stringAt, type GgufHeader } from "./gguf.ts";
import { FILE_TYPES } from "./gguf-types.ts";

export interface GgufDescription {
  readonly name: string | null;
  readonly architecture: string;
  /** Trained context; 0 when the file does not say. */
  readonly contextTokens: number;
  readonly layers: number;
  readonly embedding: number;
  /** Per layer; 0 for layers without attention. */
  readonly heads: readonly number[];
  readonly headsKv: readonly number[];
  readonly keyLength: number;
  readonly valueLength: number;
  /** e.g. `Q8_0`; the commonest tensor type by size when the file does not name its own. */
  readonly quantization: string;
  readonly parameters: number;
  /** Bytes of all tensors. */
  readonly weightsBytes: number;
  readonly hasTemplate: boolean;
  /** Images need a second file, the projector. */
  readonly vision: false;
}

/** The type that most bytes are stored in. */
const commonestType = (header: GgufHeader): string => {
  const bytes = new Map<string, number>();
  for (const { type, sizeBytes } of header.tensors) bytes.set(type.name, (bytes.get(type.name) ?? 0) + sizeBytes);
  const [first] = [...bytes].sort((a, b) => b[1] - a[1]);
  return first?.[0] ?? "unknown";
};

/** Never throws: what the file does not say is 0, null or empty. */
export const describeGguf = (header: GgufHeader): GgufDescription => {
  const architecture = stringAt(header, "general.architecture") ?? "unknown";
  const number = (name: string): number => numberAt(header, `${architecture}.${name}`) ?? 0;
  const layers = Math.min(number("block_count"), 1024);
  const embedding = number("embedding_length");
  const heads = perLayer(header, `${architecture}.attention.head_count`, layers) ?? [];
  const headsKv = perLayer(header, `${architecture}.attention.head_count_kv`, layers) ?? heads;
  const headLength = heads[0] === undefined || heads[0] === 0 ? 0 : Math.floor(embedding / heads[0]);
  const fileType = numberAt(header, "general.file_type");
  return {
    name: stringAt(header, "general.name") ?? null,
    architecture,
    contextTokens: number("context_length"),
    layers,
    embedding,
    heads,
    headsKv,
    keyLength: number("attention.key_length") || headLength,
    valueLength: number("attention.value_length") || headLength,
    quantization: (fileType === undefined ? undefined : FILE_TYPES.get(fileType)) ?? commonestType(header),
    parameters: header.tensors.reduce((sum, tensor) => sum + tensor.elements, 0),
    weightsBytes: header.tensors.reduce((sum, tensor) => sum + tensor.sizeBytes, 0),
    hasTemplate: stringAt(header, "tokenizer.chat_template") !== undefined,
    vision: false,
  };
};
