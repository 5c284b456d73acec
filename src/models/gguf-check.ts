/** Proves that llama.cpp will not abort on a model file: everything it asserts about a file is checked here first. */
import { stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { Fault } from "../core/fault.ts";
import { toFileFault } from "./file-fault.ts";
import { arrayAt, numberAt, quoted, readGgufHeader, stringAt, type GgufHeader, type GgufTensor } from "./gguf.ts";
import { modelInvalid } from "./gguf-bytes.ts";
import { checkHyperparameters } from "./gguf-check-parameters.ts";

const TOKENS = "tokenizer.ggml.tokens";
const SPLIT_NAME = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/;
const SPLITS_MAX = 1024;

/** Tensors that are multiplied with or looked up row by row: whole-number types there end in a native crash. */
const MULTIPLIED =
  /^(token_embd|output|blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down)(_exps|_shexp)?))\.weight$/;
/** Scales and offsets that are applied by element, for which the CPU knows F32 only. */
const NORM = /norm(\.weight)?$/;
const BIAS = /\.bias$/;

const checkTensorType = (path: string, tensor: GgufTensor): void => {
  const { type, name, dimensions } = tensor;
  // A vector may be written with further dimensions of size 1.
  const isVector = dimensions.slice(1).every((size) => size === 1);
  const wrong =
    type.use === "scratch" ||
    (type.use === "index" && MULTIPLIED.test(name)) ||
    (type.name !== "F32" && (NORM.test(name) || (BIAS.test(name) && isVector)));
  if (wrong)
    throw modelInvalid(path, `tensor ${quoted(name)} is stored as ${type.name}, which cannot be computed with`);
};

/** Offsets must follow one another in file order without gap or overlap, as the library demands, and end inside the file. */
const checkTensors = (header: GgufHeader): void => {
  const { path, alignmentBytes } = header;
  let expected = 0;
  for (const tensor of header.tensors) {
    const what = `tensor ${quoted(tensor.name)}`;
    checkTensorType(path, tensor);
    if (tensor.offset % alignmentBytes !== 0)
      throw modelInvalid(path, `${what} starts at ${tensor.offset}, no multiple of ${alignmentBytes}`);
    if (tensor.offset !== expected)
      throw modelInvalid(
        path,
        `${what} starts at ${tensor.offset} of the data, expected ${expected}: a gap or an overlap`,
      );
    const end = header.dataOffset + tensor.offset + tensor.sizeBytes;
    if (end > header.fileSizeBytes) {
      const missing = end - header.fileSizeBytes;
      throw modelInvalid(path, `${what} ends ${missing} bytes after the end of the file: the file is cut short`);
    }
    expected = Math.ceil((expected + tensor.sizeBytes) / alignmentBytes) * alignmentBytes;
    if (!Number.isSafeInteger(expected)) throw modelInvalid(path, `${what} is too large`);
  }
};

const checkKind = (header: GgufHeader): void => {
  const { path } = header;
  if (stringAt(header, "general.architecture") === undefined)
    throw modelInvalid(path, "the text key general.architecture is missing");
  const kind = stringAt(header, "general.type") ?? "model";
  const architecture = stringAt(header, "general.architecture");
  if (kind !== "model" || architecture === "clip") {
    const hint = "name the language model's own file";
    throw modelInvalid(
      path,
      `it holds ${kind === "model" ? "an image projector" : quoted(kind)}, not a language model`,
      hint,
    );
  }
};

/** llama.cpp asserts that no two tokens are the same text, and gives empty ones a name of its own. */
const checkTokensDiffer = (header: GgufHeader): void => {
  const seen = new Set<string>();
  const items = arrayAt(header, TOKENS)?.items ?? [];
  for (const [index, item] of items.entries()) {
    const text = item === "" ? `[EMPTY_${index}]` : String(item);
    if (seen.has(text)) throw modelInvalid(header.path, `token ${index} has the same text as an earlier one`);
    seen.add(text);
  }
};

/** Tokenizers whose default has no first token: `add_bos_token` without an id would assert on the first prompt. */
const NO_DEFAULT_BOS = new Set(["gemma4", "t5", "rwkv"]);
const NO_DEFAULT_BOS_PRE = new Set(["glm4", "chatglm-bpe"]);

const checkTokenizer = (header: GgufHeader): void => {
  const { path } = header;
  const model = stringAt(header, "tokenizer.ggml.model");
  const tokens = arrayAt(header, TOKENS);
  if (model === undefined || model === "none" || model === "no_vocab" || tokens === undefined)
    throw modelInvalid(path, "it has no tokenizer", "convert it again from a folder that has its tokenizer files");
  if (tokens.itemType !== "string" || tokens.count === 0) throw modelInvalid(path, `${TOKENS} is not a list of texts`);
  for (const [key, types] of [
    ["tokenizer.ggml.scores", ["f32", "i32"]],
    ["tokenizer.ggml.token_type", ["i32"]],
  ] as const) {
    if (!header.metadata.has(key)) continue;
    const list = arrayAt(header, key);
    if (list === undefined || !types.some((type) => type === list.itemType))
      throw modelInvalid(path, `${key} is not a list of ${types.join(" or ")}`);
    if (list.count < tokens.count)
      throw modelInvalid(path, `${key} has ${list.count} items for ${tokens.count} tokens`);
  }
  const merges = arrayAt(header, "tokenizer.ggml.merges");
  if ((model === "gpt2" || model === "gemma4") && merges?.itemType !== "string")
    throw modelInvalid(path, `tokenizer.ggml.merges, which ${quoted(model)} needs, is missing or not a list of texts`);
  const bos = numberAt(header, "tokenizer.ggml.bos_token_id");
  const noDefault = NO_DEFAULT_BOS.has(model) || NO_DEFAULT_BOS_PRE.has(stringAt(header, "tokenizer.ggml.pre") ?? "");
  if (header.metadata.get("tokenizer.ggml.add_bos_token")?.value === true && noDefault)
    if (bos === undefined || bos >= tokens.count)
      throw modelInvalid(path, "tokenizer.ggml.add_bos_token is set without a valid bos_token_id");
  checkTokensDiffer(header);
};

const exists = async (path: string): Promise<boolean> => {
  try {
    await stat(path);
    return true;
  } catch (thrown) {
    const fault = toFileFault(thrown, "model file", path);
    if (fault.code === "file_missing") return false;
    throw fault;
  }
};

/** Paths of all parts of a split model; null for a model in one file. */
const splitPaths = (header: GgufHeader): readonly string[] | null => {
  const count = numberAt(header, "split.count") ?? 1;
  const name = SPLIT_NAME.exec(basename(header.path));
  if (count <= 1) return null;
  if (count > SPLITS_MAX) throw modelInvalid(header.path, `it claims to be split into ${count} files`);
  if (name === null || Number(name[3]) !== count)
    throw modelInvalid(
      header.path,
      `it is one of ${count} parts but its name does not end in -00001-of-0000N.gguf`,
      "give the parts their original names",
    );
  const path = (part: number): string =>
    join(dirname(header.path), `${name[1]}-${String(part).padStart(5, "0")}-of-${name[3]}.gguf`);
  const paths = Array.from({ length: count }, (_, index) => path(index + 1));
  const number = numberAt(header, "split.no");
  if (number !== 0 || Number(name[2]) !== 1)
    throw modelInvalid(header.path, `it is part ${Number(name[2])} of ${count}`, `name the first part: ${paths[0]}`);
  return paths;
};

const checkSplits = async (first: GgufHeader, paths: readonly string[]): Promise<GgufHeader> => {
  const missing: string[] = [];
  for (const path of paths) if (!(await exists(path))) missing.push(basename(path));
  if (missing.length > 0)
    throw new Fault(
      "file_missing",
      `${missing.length} of ${paths.length} parts of ${first.path} are missing, the first is ${missing[0]}`,
      {
        hint: "put all parts into one folder",
      },
    );
  const tensors = [...first.tensors];
  const names = new Set(tensors.map((tensor) => tensor.name));
  let fileSizeBytes = first.fileSizeBytes;
  for (const [index, path] of paths.entries()) {
    if (index === 0) continue;
    const part = await readGgufHeader(path);
    if (numberAt(part, "split.no") !== index) throw modelInvalid(path, `it is not part ${index + 1} of the model`);
    checkTensors(part);
    for (const tensor of part.tensors) {
      if (names.has(tensor.name)) throw modelInvalid(path, `tensor ${quoted(tensor.name)} is also in another part`);
      names.add(tensor.name);
      tensors.push(tensor);
    }
    fileSizeBytes += part.fileSizeBytes;
  }
  return { ...first, tensors, fileSizeBytes, parts: paths };
};

/**
 * Reads and checks a model file (all parts of a split one) and returns its header; `tensors` and `fileSizeBytes` then
 * cover all parts. Every failure is `model_invalid`, `file_missing` or `io_failed` with a hint. Passing does not promise
 * that the architecture is known or the shapes fit it: the library refuses those with an error, not an abort.
 */
export const checkGguf = async (path: string): Promise<GgufHeader> => {
  const header = await readGgufHeader(path, { keep: [TOKENS] });
  checkKind(header);
  checkTensors(header);
  const paths = splitPaths(header);
  const whole = paths === null ? header : await checkSplits(header, paths);
  if (whole.tensors.length === 0) throw modelInvalid(path, "it has no tensors", "name a model file, not a vocabulary");
  checkHyperparameters(whole);
  checkTokenizer(whole);
  return withoutTokens(whole);
};

/** The token texts were needed for one check; keeping them would hold tens of megabytes for nothing. */
const withoutTokens = (header: GgufHeader): GgufHeader => {
  const metadata = new Map(header.metadata);
  const tokens = arrayAt(header, TOKENS);
  if (tokens !== undefined) metadata.set(TOKENS, { type: "array", value: { ...tokens, items: null } });
  return { ...header, metadata };
};
