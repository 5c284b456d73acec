/** Checks the numbers of a model that llama.cpp asserts instead of refusing (loading, rope, norms, experts, attention heads). */
import { arrayAt, numberAt, perLayer, quoted, stringAt, type GgufHeader } from "./gguf.ts";
import { modelInvalid } from "./gguf-bytes.ts";
import type { GgufType } from "./gguf-types.ts";

/** Bounds compiled into the library. */
const LAYERS_MAX = 512;
const EXPERTS_MAX = 1024;
const WIDTH_MAX = 2 ** 24;

interface Checked {
  readonly header: GgufHeader;
  readonly prefix: string;
}

const fail = ({ header }: Checked, what: string): never => {
  throw modelInvalid(header.path, what);
};

const typed = (checked: Checked, name: string, type: GgufType): number | undefined => {
  const key = `${checked.prefix}${name}`;
  const entry = checked.header.metadata.get(key);
  if (entry === undefined) return undefined;
  if (entry.type !== type) return fail(checked, `${quoted(key)} is ${entry.type}, expected ${type}`);
  return numberAt(checked.header, key);
};

const optionalU32 = (checked: Checked, name: string): number | undefined => typed(checked, name, "u32");

const requiredU32 = (checked: Checked, name: string, max: number): number => {
  const value = optionalU32(checked, name) ?? fail(checked, `${quoted(checked.prefix + name)} is missing`);
  if (value < 1 || value > max) fail(checked, `${quoted(checked.prefix + name)} is ${value}, expected 1 to ${max}`);
  return value;
};

/** A number for all layers or one per layer; the library takes u32 and, in lists, i32. */
const layered = (checked: Checked, name: string, layers: number): number[] | undefined => {
  const key = `${checked.prefix}${name}`;
  const entry = checked.header.metadata.get(key);
  if (entry === undefined) return undefined;
  const itemType = arrayAt(checked.header, key)?.itemType ?? entry.type;
  const values = perLayer(checked.header, key, layers);
  if (values === undefined || (itemType !== "u32" && itemType !== "i32"))
    return fail(checked, `${quoted(key)} is neither a u32 nor a list of ${layers} of them`);
  const wrong = values.find((value) => value < 0 || value > WIDTH_MAX);
  return wrong === undefined ? values : fail(checked, `${quoted(key)} has the value ${wrong}`);
};

const checkFloats = (checked: Checked): void => {
  for (const name of ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.scaling.factor"]) {
    const value = typed(checked, name, "f32");
    if (value !== undefined && !(value >= 0 && Number.isFinite(value)))
      fail(checked, `${quoted(checked.prefix + name)} is ${value}, expected a number from 0`);
  }
  const base = typed(checked, "rope.freq_base", "f32");
  if (base !== undefined && !(base > 0 && Number.isFinite(base)))
    fail(checked, `${quoted(`${checked.prefix}rope.freq_base`)} is ${base}, expected a number above 0`);
};

const checkRopeScaling = (checked: Checked): void => {
  const key = `${checked.prefix}rope.scaling.type`;
  if (!checked.header.metadata.has(key)) return;
  const scaling = stringAt(checked.header, key) ?? "(no text)";
  if (!["none", "linear", "yarn", "longrope"].includes(scaling))
    fail(checked, `${quoted(key)} is ${quoted(scaling)}, which is unknown`);
};

const checkExperts = (checked: Checked, layers: number): void => {
  // For these a single expert means none.
  if (checked.prefix.startsWith("hunyuan")) return;
  const experts = optionalU32(checked, "expert_count") ?? 0;
  const usedMax = Math.max(0, ...(layered(checked, "expert_used_count", layers) ?? []));
  const groups = optionalU32(checked, "expert_group_count") ?? 0;
  const groupsUsed = optionalU32(checked, "expert_group_used_count") ?? 0;
  const sound =
    experts === 0
      ? usedMax === 0 && groups === 0
      : experts <= EXPERTS_MAX && usedMax > 0 && usedMax <= experts && groups < experts;
  if (!sound)
    fail(checked, `its expert numbers do not fit together (${experts} experts, ${usedMax} used, ${groups} groups)`);
  if (groups > 1 && (experts % groups !== 0 || groupsUsed < 1 || groupsUsed >= groups))
    fail(checked, `its expert groups do not fit together (${experts} experts, ${groups} groups, ${groupsUsed} used)`);
};

const checkHeads = (checked: Checked, layers: number, embedding: number): void => {
  const heads = layered(checked, "attention.head_count", layers) ?? [];
  const headsKv = layered(checked, "attention.head_count_kv", layers) ?? heads;
  for (const [layer, count] of heads.entries()) {
    const kv = headsKv[layer] ?? 0;
    if (count > 0 && kv > 0 && count % kv !== 0)
      fail(checked, `layer ${layer} has ${count} attention heads, no multiple of its ${kv} key/value heads`);
  }
  const [first = 0] = heads;
  if (first === 0) return;
  const width = optionalU32(checked, "attention.key_length") ?? Math.floor(embedding / first);
  const widthV = optionalU32(checked, "attention.value_length") ?? width;
  if (width < 1 || width > 65_536 || widthV < 1 || widthV > 65_536)
    fail(checked, `its attention heads are ${width} wide`);
  const rotated = optionalU32(checked, "rope.dimension_count") ?? width;
  if (rotated > width || rotated % 2 !== 0)
    fail(checked, `it rotates ${rotated} values of attention heads that are ${width} wide`);
};

/** Throws `model_invalid`. The header must name its architecture. */
export const checkHyperparameters = (header: GgufHeader): void => {
  const checked = { header, prefix: `${stringAt(header, "general.architecture") ?? ""}.` };
  requiredU32(checked, "context_length", 2 ** 31 - 1);
  const embedding = requiredU32(checked, "embedding_length", WIDTH_MAX);
  const layers = requiredU32(checked, "block_count", LAYERS_MAX);
  const extraLayers = optionalU32(checked, "nextn_predict_layers") ?? 0;
  if (extraLayers > layers) fail(checked, `it has ${extraLayers} prediction layers of ${layers}`);
  layered(checked, "feed_forward_length", layers);
  checkHeads(checked, layers, embedding);
  checkExperts(checked, layers);
  checkFloats(checked);
  checkRopeScaling(checked);
};
