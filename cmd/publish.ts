/** `darkbloom publish hash`: makes the manifest with which a model is registered. */
import { rename, rm, writeFile } from "node:fs/promises";
import { Command } from "commander";
import { Fault } from "../src/core/fault.ts";
import { encodeManifest, folderManifest, manifestSha256, type Manifest } from "../src/models/manifest.ts";
import { checkModelId, checkVersion } from "../src/models/model-name.ts";
import { emit, type CommandDeps } from "./_deps.ts";
import { hashProgress } from "./_hash-progress.ts";

interface PublishHashFlags {
  readonly id: string;
  readonly version: string;
  readonly output?: string;
  readonly json?: true;
}

/** Whole or not at all: a half-written manifest could be registered. */
const writeWhole = async (path: string, text: string): Promise<void> => {
  const draft = `${path}.part`;
  try {
    await writeFile(draft, text);
    await rename(draft, path);
  } catch (thrown) {
    await rm(draft, { force: true });
    const code = thrown instanceof Error && "code" in thrown ? String(thrown.code) : "unknown error";
    throw new Fault("io_failed", `the manifest could not be written to ${path} (${code})`, {
      hint: code === "ENOSPC" ? "free disk space" : "name a file in a folder that exists and may be written",
      cause: thrown,
    });
  }
};

const hashManifest = async (deps: CommandDeps, folder: string, flags: PublishHashFlags): Promise<Manifest> => {
  const progress = hashProgress(deps);
  try {
    return await folderManifest({ folder, id: flags.id, version: flags.version }, { onProgress: progress.onProgress });
  } finally {
    progress.clear();
  }
};

const runPublishHash = async (deps: CommandDeps, folder: string, flags: PublishHashFlags): Promise<void> => {
  const manifest = await hashManifest(deps, folder, flags);
  const json = flags.json ?? false;
  if (flags.output === undefined) {
    // With --json every result is one line.
    deps.stdout(`${encodeManifest(manifest, deps.clock.nowMs(), json ? 0 : 2)}\n`);
    return;
  }
  await writeWhole(flags.output, `${encodeManifest(manifest, deps.clock.nowMs())}\n`);
  const { file_count, total_size_bytes, aggregate_sha256 } = manifest;
  deps.stderr(`${file_count} ${file_count === 1 ? "file" : "files"}, aggregate ${aggregate_sha256.slice(0, 12)}\n`);
  const identity = manifestSha256(manifest);
  if (json)
    emit(
      deps,
      json,
      { output: flags.output, file_count, total_size_bytes, aggregate_sha256, manifest_sha256: identity },
      () => "",
    );
};

export const publishCommand = (deps: CommandDeps): Command => {
  const publish = new Command("publish").description("prepare a model for a catalog");
  publish
    .command("hash")
    .description("hash a model folder into a manifest")
    .argument("<dir>", "a folder with one model's files")
    .requiredOption("--id <id>", "model id, for example my-org/my-model-q8", checkModelId)
    .requiredOption("--version <version>", "version, for example 2026-05-23-r1", checkVersion)
    .option("-o, --output <file>", "write the manifest to this file instead of stdout")
    .option("--json", "print results as one JSON object per line")
    .action((folder: string, flags: PublishHashFlags) => runPublishHash(deps, folder, flags));
  return publish;
};
