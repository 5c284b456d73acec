/** Tries a model file not yet known good in a throw-away process, since llama.cpp ends the process over some malformed files. */
import { createHash } from "node:crypto";
import { mkdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { Fault, toFault } from "../src/core/fault.ts";
import type { SelfCommand } from "../src/core/spawn-self.ts";
import { MIB } from "../src/core/units.ts";
import { Batch, StepRows } from "./batch.ts";
import { ChatTemplates } from "./chat.ts";
import { Context } from "./context.ts";
import type { NativeLocation } from "./location.ts";
import { Model } from "./model.ts";
import { openNative } from "./native.ts";
import { type ChildResult, describeEnd, runInChild } from "./run-child.ts";

export interface TryModelOptions {
  readonly self: SelfCommand;
  readonly cacheDir: string;
  /** Hash of the file's header where the caller has it; absent = hash of its first 16 MiB. */
  readonly headerSha256?: string;
  /** Layers on a GPU, as the real load will have them; absent = all. */
  readonly gpuLayers?: number;
  /** Absent = 5 minutes: a first read of a large file from a slow disk. */
  readonly deadlineMs?: number;
  readonly onProgress?: (step: string) => void;
}

/** What the child prints as its last line. */
export type TrialReport =
  | { readonly ok: true }
  | { readonly ok: false; readonly code: "memory_short" | "model_invalid" | "native_failed"; readonly message: string };

const TRIAL_DEADLINE_MS = 300_000;
const HEADER_BYTES = 16 * MIB;

/**
 * Resolves when the file loads and computes, at once when this very file did so before with these libraries. Throws
 * `model_invalid` when the child dies or reports an error, `memory_short` when it says so or the system killed it.
 */
export const tryModelInChild = async (
  location: NativeLocation,
  path: string,
  options: TryModelOptions,
): Promise<void> => {
  const marker = join(options.cacheDir, "models-tried", await trialKey(location, path, options));
  if (await Bun.file(marker).exists()) return;
  options.onProgress?.("trying the model file in a process of its own");
  const deadlineMs = options.deadlineMs ?? TRIAL_DEADLINE_MS;
  const args = ["model", JSON.stringify(location), path, String(options.gpuLayers ?? -1)];
  const result = await runInChild(options.self, "_probe", args, deadlineMs);
  const fault = toTrialFault(result, deadlineMs);
  if (fault !== null) throw fault;
  await mkdir(join(marker, ".."), { recursive: true, mode: 0o700 });
  await Bun.write(marker, "");
};

/** A file is known by place, size, time and header; one that changed in any of them is tried again. */
const trialKey = async (location: NativeLocation, path: string, options: TryModelOptions): Promise<string> => {
  const { size, mtimeMs } = await stat(path).catch((cause: unknown) => {
    throw new Fault("file_missing", `the model file cannot be read: ${path}`, { cause, hint: "check the path" });
  });
  const header = options.headerSha256 ?? (await headHash(path));
  const parts = [
    location.pin,
    location.sha256,
    location.cpuBackend,
    options.gpuLayers ?? -1,
    path,
    size,
    mtimeMs,
    header,
  ];
  return createHash("sha256").update(parts.join("\n")).digest("hex");
};

const headHash = async (path: string): Promise<string> =>
  createHash("sha256")
    .update(await Bun.file(path).slice(0, HEADER_BYTES).bytes())
    .digest("hex");

/** Null when the child did all of it and said so. Pure. */
export const toTrialFault = (result: ChildResult, deadlineMs: number): Fault | null => {
  const report = lastReport(result.stdout);
  if (report?.ok === true && result.exitCode === 0) return null;
  if (report?.ok === false && report.code === "memory_short")
    return new Fault("memory_short", report.message, { hint: "close other programs, or use a smaller model" });
  if (report?.ok === false)
    return new Fault("model_invalid", report.message, { reason: "trial_refused", hint: BAD_FILE_HINT });
  // Nobody but the kernel's memory killer sends SIGKILL to a child that is within its deadline.
  if (result.signal === "SIGKILL" && !result.timedOut)
    return new Fault("memory_short", "the system ran out of memory while the model was tried", {
      hint: "close other programs, or use a smaller model",
    });
  return new Fault("model_invalid", `the model file crashes llama.cpp (${describeEnd(result, deadlineMs)})`, {
    reason: "trial_died",
    hint: BAD_FILE_HINT,
  });
};

const BAD_FILE_HINT = "download the file again and compare its SHA-256 with the publisher's";

const lastReport = (stdout: string): TrialReport | null => {
  const line = stdout.trimEnd().split("\n").at(-1) ?? "";
  try {
    const value = JSON.parse(line) as unknown;
    return typeof value === "object" && value !== null && "ok" in value ? (value as TrialReport) : null;
  } catch {
    return null; // the child died before its last line; its end tells the rest
  }
};

/** The child's side: loads the file, computes two tokens and renders its chat template. May well kill the process. */
export const tryModel = (location: NativeLocation, path: string, gpuLayers: number): TrialReport => {
  try {
    const native = openNative(location);
    using model = Model.open(native, path, { gpuLayers });
    if (model.hasDecoder && !model.hasEncoder) computeOnce(model);
    renderOnce(model);
    return { ok: true };
  } catch (thrown) {
    const { code, message } = toFault(thrown);
    const known = code === "memory_short" || code === "native_failed" ? code : "model_invalid";
    return { ok: false, code: known, message: thrown instanceof Fault ? message : "llama.cpp refused the model file" };
  }
};

const computeOnce = (model: Model): void => {
  const sizes = { contextTokens: 64, sequences: 1, batchTokens: 32, microBatchTokens: 32 };
  using context = Context.open(model, { ...sizes, threads: 1, threadsBatch: 1 });
  const batch = new Batch(sizes.batchTokens);
  const tokens = model.tokenize("a b", { special: false }).slice(0, sizes.batchTokens);
  const used = tokens.length === 0 ? Int32Array.of(0) : tokens;
  for (const [position, token] of used.entries()) batch.add(token, position, 0, position === used.length - 1);
  context.step(batch, new StepRows(1), new Int32Array(1));
};

/** A template is a program of the file's author: one that recurses without end kills the process it runs in. */
const renderOnce = (model: Model): void => {
  try {
    using templates = ChatTemplates.open(model);
    templates.apply({ messages: [{ role: "user", content: "a" }] });
  } catch (thrown) {
    // One that merely refuses does no harm here; whoever serves the model reports it.
    if (!(thrown instanceof Fault) || (thrown.code !== "template_failed" && thrown.code !== "bad_request"))
      throw thrown;
  }
};
