/** Reads the header of a GGUF file (versions 2 and 3, little endian) without native code and without trusting a number in it. */
import { createHash } from "node:crypto";
import { GGUF_HEADER_BYTES_MAX } from "../core/limits.ts";
import { withFile } from "./file-fault.ts";
import { ByteReader } from "./gguf-bytes.ts";
import { GGUF_TYPE_BYTES, GGUF_TYPES, TENSOR_TYPES, type GgufType, type TensorType } from "./gguf-types.ts";

export type GgufScalar = number | bigint | boolean | string;

export interface GgufArray {
  readonly itemType: Exclude<GgufType, "array">;
  readonly count: number;
  /** Null for a long array that was not asked for; its items were still walked over and bounded. */
  readonly items: readonly GgufScalar[] | null;
}

export type GgufEntry =
  | { readonly type: Exclude<GgufType, "array">; readonly value: GgufScalar }
  | { readonly type: "array"; readonly value: GgufArray };

export interface GgufTensor {
  readonly name: string;
  /** 1 to 4 sizes, the row length first. */
  readonly dimensions: readonly number[];
  readonly type: TensorType;
  readonly elements: number;
  readonly sizeBytes: number;
  /** From the start of the data section. */
  readonly offset: number;
}

export interface GgufHeader {
  readonly path: string;
  readonly version: number;
  readonly metadata: ReadonlyMap<string, GgufEntry>;
  readonly tensors: readonly GgufTensor[];
  readonly alignmentBytes: number;
  /** Where tensor data starts: the length of the header, padding included. */
  readonly dataOffset: number;
  readonly fileSizeBytes: number;
  /** Every file of a split model in order, `path` first; one entry otherwise. */
  readonly parts: readonly string[];
}

export interface GgufReadOptions {
  /** Keys of long arrays whose items are wanted. */
  readonly keep?: readonly string[];
}

// Several times what the largest public models have. llama.cpp compares every name with every other, so these also bound its time.
const METADATA_COUNT_MAX = 8192;
const TENSOR_COUNT_MAX = 65_536;
const NAME_BYTES_MAX = 65_535;
const TENSOR_NAME_BYTES_MAX = 63;
const STRING_BYTES_MAX = 16 * 1024 * 1024;
const ARRAY_COUNT_MAX = 16 * 1024 * 1024;
/** Per-layer arrays have at most 512 items; tokenizer arrays have tens of thousands. */
const ARRAY_ITEMS_KEPT_MAX = 1024;
/** Characters of all kept strings together. */
const TEXT_KEPT_MAX = 64 * 1024 * 1024;
const DIMENSIONS_MAX = 4;
const ALIGNMENT_DEFAULT = 32;
const ALIGNMENT_MAX = 2 ** 20;

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

interface Reading {
  readonly reader: ByteReader;
  readonly keep: ReadonlySet<string>;
  keptBytes: number;
}

/** A name from the file as it may appear in a message: short, no control characters. */
export const quoted = (name: string): string => JSON.stringify(name.length > 80 ? `${name.slice(0, 80)}…` : name);

const readText = (reading: Reading, what: string, bytesMax: number): string => {
  const { reader } = reading;
  const length = reader.count(`length of ${what}`, bytesMax);
  reading.keptBytes += length;
  if (reading.keptBytes > TEXT_KEPT_MAX) reader.fail("the header has too much text");
  const bytes = reader.bytes(length, what);
  try {
    return decoder.decode(bytes);
  } catch {
    return reader.fail(`${what} is not UTF-8 text`);
  }
};

/** Token texts may be any bytes: each byte becomes one character, so that different bytes stay different. */
const readItemText = (reading: Reading, what: string): string => {
  const length = reading.reader.count(`length of ${what}`, STRING_BYTES_MAX);
  reading.keptBytes += length;
  if (reading.keptBytes > TEXT_KEPT_MAX) reading.reader.fail("the header has too much text");
  return Buffer.from(reading.reader.bytes(length, what)).toString("latin1");
};

const readType = (reader: ByteReader, what: string): GgufType => {
  const number = reader.u32(`type of ${what}`);
  const found = GGUF_TYPES[number];
  return found ?? reader.fail(`${what} has unknown type ${number}`);
};

const readNumber = (reader: ByteReader, type: Exclude<GgufType, "array" | "string">, what: string): GgufScalar => {
  if (type === "bool") return reader.u8(what) !== 0;
  return reader[type](what);
};

const readArray = (reading: Reading, key: string, what: string): GgufArray => {
  const { reader } = reading;
  const itemType = readType(reader, `items of ${what}`);
  if (itemType === "array") return reader.fail(`${what} is an array of arrays, which llama.cpp refuses`);
  const count = reader.count(`item count of ${what}`, ARRAY_COUNT_MAX);
  // A string is at least its 8-byte length, so a false count is seen before any work is done for it.
  const bytesMin = count * (itemType === "string" ? 8 : GGUF_TYPE_BYTES[itemType]);
  if (bytesMin > reader.remaining) reader.fail(`${what} with ${count} items ends past the end of the header`);
  const kept = count <= ARRAY_ITEMS_KEPT_MAX || reading.keep.has(key);
  if (!kept && itemType !== "string") {
    reader.skip(bytesMin, what);
    return { itemType, count, items: null };
  }
  const items: GgufScalar[] = [];
  for (let index = 0; index < count; index += 1) {
    if (itemType !== "string") items.push(readNumber(reader, itemType, what));
    else if (kept) items.push(readItemText(reading, what));
    else reader.skip(reader.count(`length of ${what}`, STRING_BYTES_MAX), what);
  }
  return { itemType, count, items: kept ? items : null };
};

const readMetadata = (reading: Reading, count: number): Map<string, GgufEntry> => {
  const { reader } = reading;
  const metadata = new Map<string, GgufEntry>();
  for (let index = 0; index < count; index += 1) {
    const key = readText(reading, `key ${index}`, NAME_BYTES_MAX);
    if (key === "") reader.fail(`key ${index} is empty`);
    if (metadata.has(key)) reader.fail(`key ${quoted(key)} appears twice`);
    const what = `key ${quoted(key)}`;
    const type = readType(reader, what);
    if (type === "array") metadata.set(key, { type, value: readArray(reading, key, what) });
    else if (type === "string") metadata.set(key, { type, value: readText(reading, what, STRING_BYTES_MAX) });
    else metadata.set(key, { type, value: readNumber(reader, type, what) });
  }
  return metadata;
};

const readDimensions = (reader: ByteReader, what: string): number[] => {
  const count = reader.u32(`dimension count of ${what}`);
  if (count < 1 || count > DIMENSIONS_MAX) reader.fail(`${what} has ${count} dimensions, not 1 to ${DIMENSIONS_MAX}`);
  return Array.from({ length: count }, () => {
    const size = reader.count(`a dimension of ${what}`, Number.MAX_SAFE_INTEGER);
    return size > 0 ? size : reader.fail(`${what} has a dimension of size 0`);
  });
};

const readTensor = (reading: Reading, index: number): GgufTensor => {
  const { reader } = reading;
  const name = readText(reading, `name of tensor ${index}`, TENSOR_NAME_BYTES_MAX);
  if (name === "" || name.includes("\0")) reader.fail(`tensor ${index} has no usable name`);
  const what = `tensor ${quoted(name)}`;
  const dimensions = readDimensions(reader, what);
  const typeNumber = reader.u32(`type of ${what}`);
  const type = TENSOR_TYPES.get(typeNumber) ?? reader.fail(`${what} has unknown type ${typeNumber}`);
  let elements = 1;
  for (const size of dimensions) {
    elements *= size;
    if (!Number.isSafeInteger(elements)) reader.fail(`${what} is too large`);
  }
  const [rowLength = 0] = dimensions;
  if (rowLength % type.blockElements !== 0)
    reader.fail(`${what} has rows of ${rowLength}, no multiple of ${type.blockElements} as ${type.name} needs`);
  const sizeBytes = (elements / type.blockElements) * type.blockBytes;
  if (!Number.isSafeInteger(sizeBytes)) reader.fail(`${what} is too large`);
  const offset = reader.count(`offset of ${what}`, Number.MAX_SAFE_INTEGER);
  return { name, dimensions, type, elements, sizeBytes, offset };
};

const readVersion = (reader: ByteReader): number => {
  if (reader.remaining < 24 || reader.u32("magic") !== 0x46554747)
    reader.fail("it does not start with the letters GGUF, so it is another kind of file or damaged");
  const version = reader.u32("version");
  if ((version & 0xffff) === 0) reader.fail("it is big endian; only little-endian files can be read");
  if (version === 1) reader.fail("it is GGUF version 1, which is no longer in use");
  if (version < 2 || version > 3) reader.fail(`it is GGUF version ${version}; versions 2 and 3 are known`);
  return version;
};

const readAlignment = (reader: ByteReader, metadata: ReadonlyMap<string, GgufEntry>): number => {
  const entry = metadata.get("general.alignment");
  if (entry === undefined) return ALIGNMENT_DEFAULT;
  const { value } = entry;
  if (entry.type !== "u32" || typeof value !== "number") return reader.fail("general.alignment is not a u32");
  if (value < 1 || value > ALIGNMENT_MAX || (value & (value - 1)) !== 0)
    reader.fail(`general.alignment ${value} is not a power of two up to ${ALIGNMENT_MAX}`);
  return value;
};

const readHeader = (reading: Reading, fileSizeBytes: number): GgufHeader => {
  const { reader } = reading;
  const version = readVersion(reader);
  const tensorCount = reader.count("tensor count", TENSOR_COUNT_MAX);
  const metadata = readMetadata(reading, reader.count("key count", METADATA_COUNT_MAX));
  const alignmentBytes = readAlignment(reader, metadata);
  const tensors: GgufTensor[] = [];
  const names = new Set<string>();
  for (let index = 0; index < tensorCount; index += 1) {
    const tensor = readTensor(reading, index);
    if (names.has(tensor.name)) reader.fail(`tensor ${quoted(tensor.name)} appears twice`);
    names.add(tensor.name);
    tensors.push(tensor);
  }
  const dataOffset = Math.ceil(reader.offset / alignmentBytes) * alignmentBytes;
  return {
    path: reader.path,
    version,
    metadata,
    tensors,
    alignmentBytes,
    dataOffset,
    fileSizeBytes,
    parts: [reader.path],
  };
};

/**
 * The header as it stands in the file: its own structure is sound, but nothing is said about the data behind it
 * (see `checkGguf`). Throws `file_missing`, `io_failed`, `model_invalid`. Reads with blocking calls: some tens of
 * milliseconds for a large vocabulary.
 */
export const readGgufHeader = (path: string, options: GgufReadOptions = {}): Promise<GgufHeader> =>
  withFile("model file", path, ({ handle, sizeBytes }) => {
    const reader = new ByteReader(handle.fd, path, Math.min(sizeBytes, GGUF_HEADER_BYTES_MAX));
    return readHeader({ reader, keep: new Set(options.keep), keptBytes: 0 }, sizeBytes);
  });

/** SHA-256 (hex) of the bytes before the first tensor-data byte, padding included; for a file cut short, of what there is. */
export const ggufHeaderSha256 = async (path: string): Promise<string> => {
  const header = await readGgufHeader(path);
  return withFile("model file", path, ({ handle, sizeBytes }) => {
    const reader = new ByteReader(handle.fd, path, Math.min(sizeBytes, header.dataOffset));
    const hash = createHash("sha256");
    while (reader.remaining > 0) hash.update(reader.bytes(Math.min(reader.remaining, 64 * 1024), "header"));
    return hash.digest("hex");
  });
};

/** SHA-256 (hex) of the UTF-8 text of `tokenizer.chat_template`; undefined when the file has none. */
export const templateSha256 = (header: GgufHeader): string | undefined => {
  const template = stringAt(header, "tokenizer.chat_template");
  return template === undefined ? undefined : createHash("sha256").update(template, "utf8").digest("hex");
};

/** The value of a text key; undefined when absent or of another type. */
export const stringAt = (header: GgufHeader, key: string): string | undefined => {
  const value = header.metadata.get(key)?.value;
  return typeof value === "string" ? value : undefined;
};

/** The value of a number key of any width; undefined when absent, of another type, or beyond 2^53. */
export const numberAt = (header: GgufHeader, key: string): number | undefined => {
  const value = header.metadata.get(key)?.value;
  if (typeof value === "number") return value;
  return typeof value === "bigint" && Number.isSafeInteger(Number(value)) ? Number(value) : undefined;
};

/** An array's description; undefined when absent or no array. */
export const arrayAt = (header: GgufHeader, key: string): GgufArray | undefined => {
  const entry = header.metadata.get(key);
  return entry?.type === "array" ? entry.value : undefined;
};

/** One number per layer, whether the file has one for all or a list; undefined when absent or malformed. */
export const perLayer = (header: GgufHeader, key: string, layers: number): number[] | undefined => {
  const single = numberAt(header, key);
  if (single !== undefined) return Array.from({ length: layers }, () => single);
  const list = arrayAt(header, key)?.items;
  if (list?.length !== layers) return undefined;
  const numbers = list.map((item) => (typeof item === "bigint" ? Number(item) : item));
  return numbers.every((item) => typeof item === "number" || typeof item === "boolean")
    ? numbers.map(Number)
    : undefined;
};
