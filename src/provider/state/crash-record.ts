/** `crashes.json`: which models were in memory when the provider crashed, so that one that keeps crashing it is left alone. */
import { join } from "node:path";
import { z } from "zod";
import { Fault } from "../../core/fault.ts";
import { ensurePrivateDir, readPrivateFile, writePrivateFile } from "./private-file.ts";

const MODELS_MAX = 64;
/** Two crashes within this time mark a model. */
export const CRASH_WINDOW_MS = 600_000;
export const CRASHES_TO_MARK = 2;

const recordSchema = z.object({
  version: z.literal(1),
  models: z.record(
    z.string(),
    z.object({
      /** Unix times of the crashes that still count, newest last. */
      crashed_at_ms: z.array(z.number()).max(16),
      /** Set once it is left alone, until a forced start. */
      marked: z.boolean(),
    }),
  ),
});
export type CrashRecord = z.infer<typeof recordSchema>;

const EMPTY: CrashRecord = { version: 1, models: {} };

export const crashRecordPath = (dataDir: string): string => join(dataDir, "crashes.json");

/** A file that cannot be understood counts as empty: at worst a model crashes twice more. Faults: `io_failed`. */
export const readCrashRecord = (dataDir: string): CrashRecord => {
  const text = readPrivateFile(crashRecordPath(dataDir));
  if (text === null) return EMPTY;
  try {
    return recordSchema.parse(JSON.parse(text));
  } catch {
    // See above; the next crash writes a good one.
    return EMPTY;
  }
};

export const writeCrashRecord = (dataDir: string, record: CrashRecord): void => {
  ensurePrivateDir(dataDir);
  writePrivateFile(crashRecordPath(dataDir), `${JSON.stringify(record, null, 2)}\n`, { durable: true });
};

/** The record after a crash with these models in memory. */
export const addCrash = (record: CrashRecord, models: readonly string[], nowMs: number): CrashRecord => {
  const next: CrashRecord["models"] = { ...record.models };
  for (const model of models.slice(0, MODELS_MAX)) {
    const known = next[model];
    // A clock that was set back must not keep an old crash alive for ever.
    const recent = (known?.crashed_at_ms ?? []).filter((atMs) => Math.abs(nowMs - atMs) < CRASH_WINDOW_MS);
    const crashes = [...recent, nowMs].slice(-CRASHES_TO_MARK);
    next[model] = { crashed_at_ms: crashes, marked: known?.marked === true || crashes.length >= CRASHES_TO_MARK };
  }
  return { version: 1, models: newest(next) };
};

/** Ids come and go with the files a user tries: only the latest crashes are worth keeping. */
const newest = (models: CrashRecord["models"]): CrashRecord["models"] => {
  const entries = Object.entries(models);
  if (entries.length <= MODELS_MAX) return models;
  const lastOf = (entry: (typeof entries)[number]): number => entry[1].crashed_at_ms.at(-1) ?? 0;
  return Object.fromEntries(entries.sort((a, b) => lastOf(b) - lastOf(a)).slice(0, MODELS_MAX));
};

export const clearCrashes = (record: CrashRecord, models: readonly string[]): CrashRecord => ({
  version: 1,
  models: Object.fromEntries(Object.entries(record.models).filter(([model]) => !models.includes(model))),
});

/** Which of the models are to be left alone. */
export const markedModels = (record: CrashRecord, models: readonly string[]): string[] =>
  models.filter((model) => record.models[model]?.marked === true);

export const modelCrashedFault = (model: string): Fault =>
  new Fault(
    "model_crashed",
    `the model ${model} crashed the provider ${CRASHES_TO_MARK} times within ${CRASH_WINDOW_MS / 60_000} minutes`,
    {
      hint: "it is not loaded again; to try all the same: darkbloom start … --force",
    },
  );
