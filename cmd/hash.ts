/** `darkbloom hash`: the SHA-256 of a model file, or of a model folder's files and their aggregate. */
import { stat } from "node:fs/promises";
import { Command } from "commander";
import { toFileFault } from "../src/models/file-fault.ts";
import { aggregateSha256 } from "../src/models/hash.ts";
import { hashFolder, hashSingle, type HashOptions, type ManifestFile } from "../src/models/manifest.ts";
import { emit, type CommandDeps } from "./_deps.ts";
import { hashProgress } from "./_hash-progress.ts";

const isFolder = async (path: string): Promise<boolean> => {
  try {
    const found = await stat(path);
    return found.isDirectory();
  } catch (thrown) {
    throw toFileFault(thrown, "file or folder", path);
  }
};

const toText = (files: readonly ManifestFile[], aggregate: string): string =>
  [...files.map(({ sha256, path }) => `${sha256}  ${path}`), `${aggregate}  aggregate`].join("\n");

const runHash = async (deps: CommandDeps, path: string, json: boolean): Promise<void> => {
  const progress = hashProgress(deps);
  const options: HashOptions = {
    onProgress: progress.onProgress,
    onBadGguf: (fault) => {
      progress.clear();
      deps.stderr(`warning: ${fault.message}\n`);
    },
  };
  try {
    const files = (await isFolder(path)) ? await hashFolder(path, options) : await hashSingle(path, options);
    progress.clear();
    const aggregate = aggregateSha256(files);
    emit(deps, json, { aggregate_sha256: aggregate, files }, () => toText(files, aggregate));
  } finally {
    progress.clear();
  }
};

export const hashCommand = (deps: CommandDeps): Command =>
  new Command("hash")
    .description("print the SHA-256 of a model file, or of a folder's model files and their aggregate")
    .argument("<file|dir>", "a model file or a folder with one model's files")
    .option("--json", "print one JSON object")
    .action((path: string, flags: { readonly json?: true }) => runHash(deps, path, flags.json ?? false));
