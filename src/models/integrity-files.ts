/** Which files of a model folder count, and what each is for (api-billing-store §7.3). */
import type { Dirent } from "node:fs";
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { Fault } from "../core/fault.ts";
import { compareBytes } from "./hash.ts";
import { toFileFault } from "./file-fault.ts";

export type FileRole = "weight" | "index" | "tokenizer" | "config" | "template" | "preprocessor" | "other";

/** By exact name; names are case-sensitive. */
const ROLE_BY_NAME: ReadonlyMap<string, FileRole> = new Map([
  ["config.json", "config"],
  ["generation_config.json", "config"],
  ["quantize_config.json", "config"],
  ["tokenizer.json", "tokenizer"],
  ["tokenizer_config.json", "tokenizer"],
  ["tokenizer.model", "tokenizer"],
  ["special_tokens_map.json", "tokenizer"],
  ["added_tokens.json", "tokenizer"],
  ["vocab.json", "tokenizer"],
  ["merges.txt", "tokenizer"],
  ["chat_template.jinja", "template"],
  ["model.safetensors.index.json", "index"],
  ["preprocessor_config.json", "preprocessor"],
  ["processor_config.json", "preprocessor"],
]);
const WEIGHT_SUFFIXES = [".safetensors", ".npz", ".bin", ".gguf"];

export const FILES_MAX = 16_384;
const ENTRIES_MAX = 1_000_000;
const DEPTH_MAX = 64;

/** `other` for a file that no rule knows. */
export const roleOf = (name: string): FileRole =>
  WEIGHT_SUFFIXES.some((suffix) => name.endsWith(suffix)) ? "weight" : (ROLE_BY_NAME.get(name) ?? "other");

interface Walk {
  readonly root: string;
  readonly found: string[];
  entries: number;
}

const listFolder = async (path: string): Promise<Dirent[]> => {
  try {
    return await readdir(path, { withFileTypes: true });
  } catch (thrown) {
    throw toFileFault(thrown, "folder", path);
  }
};

/** A link counts as what it points to, under its own name; links to folders are not followed, so no loop can form. */
const isFile = async (entry: Dirent, path: string): Promise<boolean> => {
  if (!entry.isSymbolicLink()) return entry.isFile();
  try {
    const target = await stat(path);
    return target.isFile();
  } catch (thrown) {
    throw toFileFault(thrown, "file", path);
  }
};

const walk = async (state: Walk, below: string, depth: number): Promise<void> => {
  if (depth > DEPTH_MAX) throw new Fault("io_failed", `${state.root} has folders more than ${DEPTH_MAX} deep`);
  const entries = await listFolder(join(state.root, below));
  state.entries += entries.length;
  if (state.entries > ENTRIES_MAX) throw new Fault("io_failed", `${state.root} has more than ${ENTRIES_MAX} entries`);
  for (const entry of entries) {
    if (entry.name.startsWith(".")) continue;
    const path = below === "" ? entry.name : `${below}/${entry.name}`;
    if (entry.isDirectory()) await walk(state, path, depth + 1);
    else if (roleOf(entry.name) !== "other" && (await isFile(entry, join(state.root, path)))) state.found.push(path);
  }
  if (state.found.length > FILES_MAX)
    throw new Fault("io_failed", `${state.root} has more than ${FILES_MAX} model files`, {
      hint: "name one model's folder",
    });
};

/** Relative paths with `/`, in byte order. Faults: `file_missing` also when the folder holds no model file. */
export const listIntegrityFiles = async (root: string): Promise<string[]> => {
  const state: Walk = { root, found: [], entries: 0 };
  await walk(state, "", 0);
  if (state.found.length === 0)
    throw new Fault("file_missing", `${root} has no model files (weights, config.json, tokenizer files)`, {
      hint: "name the folder that holds the .gguf or .safetensors files",
    });
  return state.found.sort(compareBytes);
};
