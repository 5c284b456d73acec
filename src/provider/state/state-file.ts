/** `state.json`: what the provider does right now, for `status`, `doctor` and the supervisor, from the first second to the last. */
import { join } from "node:path";
import { z } from "zod";
import type { Clock } from "../../core/clock.ts";
import type { Fault } from "../../core/fault.ts";
import { errorFields, type Log } from "../../core/log.ts";
import { readPrivateFile, writePrivateFile } from "./private-file.ts";

export const PROVIDER_PHASES = [
  "starting",
  "hashing",
  "loading",
  "connecting",
  "verifying",
  "serving",
  "backoff",
  "draining",
  "stopped",
  "failed",
] as const;
export type ProviderPhase = (typeof PROVIDER_PHASES)[number];

const trustSchema = z.object({
  trust_level: z.string(),
  status: z.string(),
  reason: z.string().nullable(),
  seen: z.string().nullable(),
  expected: z.string().nullable(),
  retry_at: z.union([z.string(), z.number()]).nullable(),
  command: z.string().nullable(),
  /** When the coordinator told us. */
  at: z.iso.datetime(),
});

const errorSchema = z.object({
  code: z.string(),
  message: z.string(),
  hint: z.string().nullable(),
  at: z.iso.datetime(),
});

const stateSchema = z.object({
  version: z.literal(1),
  mode: z.enum(["coordinator", "local"]),
  phase: z.enum(PROVIDER_PHASES),
  pid: z.int().positive(),
  program_version: z.string(),
  /** Ids that are loading or resident; the supervisor blames these for a crash. */
  models: z.array(z.string()),
  provider_id: z.string().nullable(),
  coordinator_url: z.string().nullable(),
  local_url: z.string().nullable(),
  requests_running: z.int().nonnegative(),
  requests_served: z.int().nonnegative(),
  trust: trustSchema.nullable(),
  last_error: errorSchema.nullable(),
  started_at: z.iso.datetime(),
  updated_at: z.iso.datetime(),
});
export type ProviderState = z.infer<typeof stateSchema>;

export const statePath = (dataDir: string): string => join(dataDir, "state.json");

export interface StateWriter {
  /** Writes at once. A disk that refuses is counted and logged: a provider serves without its state file. */
  update(change: Partial<Omit<ProviderState, "version" | "started_at" | "updated_at">>): void;
  setError(fault: Fault): void;
  readonly current: ProviderState;
  readonly failedWrites: number;
}

export interface StateDeps {
  readonly clock: Pick<Clock, "nowMs">;
  readonly log: Log;
}

export type StateStart = Pick<
  ProviderState,
  "mode" | "pid" | "program_version" | "models" | "provider_id" | "coordinator_url"
>;

/** The coordinator's verdict of an earlier run is kept: with its age it is still news to the owner. */
export const openStateWriter = (deps: StateDeps, dataDir: string, start: StateStart): StateWriter => {
  const isoNow = (): string => new Date(deps.clock.nowMs()).toISOString();
  const earlier = readState({ dataDir, nowMs: deps.clock.nowMs() });
  let failedWrites = 0;
  let current: ProviderState = {
    version: 1,
    ...start,
    phase: "starting",
    local_url: null,
    requests_running: 0,
    requests_served: 0,
    trust: earlier?.state.trust ?? null,
    last_error: null,
    started_at: isoNow(),
    updated_at: isoNow(),
  };
  const write = (): void => {
    try {
      writePrivateFile(statePath(dataDir), `${JSON.stringify(current, null, 2)}\n`);
    } catch (error) {
      failedWrites += 1;
      if (failedWrites === 1) deps.log.warn("state_write_failed", errorFields(error));
    }
  };
  write();
  return {
    update(change) {
      current = { ...current, ...change, updated_at: isoNow() };
      write();
    },
    setError(fault) {
      const { code, message, hint = null } = fault;
      this.update({ last_error: { code, message, hint, at: isoNow() } });
    },
    get current() {
      return current;
    },
    get failedWrites() {
      return failedWrites;
    },
  };
};

export interface StateReading {
  readonly state: ProviderState;
  /** Since the last update; a live provider updates at every heartbeat. */
  readonly ageMs: number;
}

/** Null when there is no state or another program's: a state file is a report, never a reason to fail. */
export const readState = (from: { readonly dataDir: string; readonly nowMs: number }): StateReading | null => {
  let text: string | null;
  try {
    text = readPrivateFile(statePath(from.dataDir));
  } catch {
    // Unreadable counts as absent: the writer reports the same disk's faults, with their cause.
    return null;
  }
  const parsed = stateSchema.safeParse(text === null ? null : jsonOrNull(text));
  if (!parsed.success) return null;
  return { state: parsed.data, ageMs: Math.max(0, from.nowMs - Date.parse(parsed.data.updated_at)) };
};

/** The last word of a process whose writer cannot be reached any more; another process's state stays. */
export const markStopped = (clock: Pick<Clock, "nowMs">, dataDir: string): void => {
  const state = readState({ dataDir, nowMs: clock.nowMs() })?.state;
  if (state?.pid !== process.pid) return;
  const stopped = { phase: "stopped", models: [], requests_running: 0, local_url: null } as const;
  const updated_at = new Date(clock.nowMs()).toISOString();
  writePrivateFile(statePath(dataDir), `${JSON.stringify({ ...state, ...stopped, updated_at }, null, 2)}\n`);
};

const jsonOrNull = (text: string): unknown => {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
};
