/** Chooses the CPU backend: the best-scoring one that survives real work in a throw-away process, remembered per pin, libraries and CPU. */
import { createHash } from "node:crypto";
import { mkdir, rename } from "node:fs/promises";
import { join } from "node:path";
import { Fault } from "../src/core/fault.ts";
import type { Log } from "../src/core/log.ts";
import type { SelfCommand } from "../src/core/spawn-self.ts";
import { withFileLock } from "./file-lock.ts";
import { PIN } from "./pin.ts";
import { type ChildResult, describeEnd, runInChild } from "./run-child.ts";
import type { CpuIdentity } from "./system.ts";

export interface BackendOptions {
  readonly dir: string;
  readonly shimPath: string;
  /** Hash over the library files. */
  readonly sha256: string;
  readonly candidates: readonly string[];
  readonly cpu: CpuIdentity;
  readonly cacheDir: string;
  readonly self: SelfCommand;
  readonly log: Log;
  readonly onProgress?: (step: string) => void;
  /** Longest one self-test may take; absent = 30 s. */
  readonly deadlineMs?: number;
}

export interface BackendScore {
  readonly file: string;
  /** Upstream's measure of fit; 0 = does not run on this CPU. */
  readonly score: number;
}

/** What became of one candidate. */
export interface BackendVerdict {
  readonly file: string;
  readonly score: number;
  /** Null when it passed, else how it failed. */
  readonly failure: string | null;
}

interface BackendChoice {
  readonly cpuBackend: string;
  readonly verdicts: readonly BackendVerdict[];
}

const SELF_TEST_DEADLINE_MS = 30_000;
const LOCK_DEADLINE_MS = 600_000;

/** Candidates that run here, best first; equal scores in name order, so that every machine agrees. Pure. */
export const orderBackends = (scores: readonly BackendScore[]): readonly BackendScore[] =>
  scores.filter(({ score }) => score > 0).toSorted((a, b) => b.score - a.score || (a.file < b.file ? -1 : 1));

/** Short name for people: `libggml-cpu-zen4.so` → `zen4`. */
export const backendName = (file: string): string => file.replace(/^libggml-(?:cpu-)?/, "").replace(/\.[a-z]+$/, "");

/**
 * File name of the backend to load; null when the folder has none, because its CPU code is linked in.
 * Throws `native_failed` naming every candidate and how it ended when none survives.
 */
export const chooseBackend = async (options: BackendOptions): Promise<string | null> => {
  if (options.candidates.length === 0) return null;
  const cachePath = join(options.cacheDir, "self-test", `${cacheKey(options)}.json`);
  const known = await readChoice(cachePath, options.candidates);
  if (known !== null) return known.cpuBackend;
  return withFileLock(`${cachePath}.lock`, LOCK_DEADLINE_MS, async () => {
    const meanwhile = await readChoice(cachePath, options.candidates);
    if (meanwhile !== null) return meanwhile.cpuBackend;
    const choice = await runSelfTests(options);
    await writeChoice(cachePath, choice);
    return choice.cpuBackend;
  });
};

const cacheKey = (options: BackendOptions): string =>
  createHash("sha256").update(`${PIN}\n${options.sha256}\n${options.cpu.sha256}`).digest("hex").slice(0, 32);

const runSelfTests = async (options: BackendOptions): Promise<BackendChoice> => {
  const deadlineMs = options.deadlineMs ?? SELF_TEST_DEADLINE_MS;
  const { scores, dead } = await readScores(options, deadlineMs);
  const verdicts: BackendVerdict[] = [...dead];
  for (const { file, score } of orderBackends(scores)) {
    options.onProgress?.(`testing CPU backend ${backendName(file)}`);
    const failure = await failureOf(options, file, deadlineMs);
    verdicts.push({ file, score, failure });
    if (failure === null) {
      options.log.info("cpu_backend_chosen", { file, score, failed: verdicts.length - 1 });
      return { cpuBackend: file, verdicts };
    }
    options.log.warn("cpu_backend_failed", { file, score, failure });
  }
  const tried = verdicts.map(({ file, failure }) => `${file}: ${failure}`).join("; ");
  const none = `none of ${options.candidates.length} knows this CPU (${options.cpu.name})`;
  throw new Fault("native_failed", `no CPU backend works on this machine: ${tried === "" ? none : tried}`, {
    reason: "cpu_backend",
    hint: "reinstall the native libraries (npm ci), or point DARKBLOOM_NATIVE_DIR at a build for this machine",
  });
};

/** Null when the backend passed in a child of its own. */
const failureOf = async (options: BackendOptions, file: string, deadlineMs: number): Promise<string | null> => {
  const args = ["backend", options.shimPath, join(options.dir, file)];
  const result = await runInChild(options.self, "_probe", args, deadlineMs);
  const answer = lastJson(result);
  if (result.exitCode === 0 && answer?.["ok"] === true) return null;
  const said = typeof answer?.["failure"] === "string" ? `: ${answer["failure"]}` : "";
  return `${describeEnd(result, deadlineMs)}${said}`;
};

/**
 * Asks every candidate for its score in one child. A library that kills the child while it is loaded is out, and the
 * rest are asked again: at most one child per library, since each round either ends or removes one.
 */
const readScores = async (options: BackendOptions, deadlineMs: number) => {
  const scores: BackendScore[] = [];
  const dead: BackendVerdict[] = [];
  let left = [...options.candidates];
  while (left.length > 0) {
    const result = await runInChild(options.self, "_probe", ["scores", options.dir, ...left], deadlineMs);
    const lines = jsonLines(result.stdout);
    const done = new Set<string>();
    for (const { file, stage, score } of lines)
      if (stage === "end" && typeof file === "string" && typeof score === "number" && left.includes(file)) {
        scores.push({ file, score });
        done.add(file);
      }
    left = left.filter((file) => !done.has(file));
    const [culprit] = left;
    if (culprit === undefined) break;
    const begun = lines.some(({ file, stage }) => stage === "begin" && file === culprit);
    if (!begun) throw new Fault("native_failed", `the backend probe does not run: ${describeEnd(result, deadlineMs)}`);
    dead.push({ file: culprit, score: 0, failure: `${describeEnd(result, deadlineMs)} while it was loaded` });
    left = left.slice(1);
  }
  return { scores, dead };
};

const jsonLines = (text: string): readonly Record<string, unknown>[] =>
  text.split("\n").map(parseJson).filter(isRecord);

const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null;

const lastJson = (result: ChildResult): Record<string, unknown> | null => jsonLines(result.stdout).at(-1) ?? null;

const parseJson = (text: string): unknown => {
  try {
    return JSON.parse(text);
  } catch {
    return null; // native code prints to the same stream; only our own lines count
  }
};

/** Null when nothing usable is cached; a damaged file only costs another self-test. */
const readChoice = async (path: string, candidates: readonly string[]): Promise<BackendChoice | null> => {
  const file = Bun.file(path);
  if (!(await file.exists())) return null;
  const value = parseJson(await file.text()) as Partial<BackendChoice> | null;
  const chosen = value?.cpuBackend;
  if (typeof chosen !== "string" || !candidates.includes(chosen)) return null;
  return { cpuBackend: chosen, verdicts: value?.verdicts ?? [] };
};

const writeChoice = async (path: string, choice: BackendChoice): Promise<void> => {
  await mkdir(join(path, ".."), { recursive: true, mode: 0o700 });
  await Bun.write(`${path}.tmp`, `${JSON.stringify(choice, null, 2)}\n`); // only the holder of the lock writes
  await rename(`${path}.tmp`, path);
};
