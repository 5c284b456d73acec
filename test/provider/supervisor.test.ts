/** The supervisor: its decisions as a function, and real little child processes that crash, end, and refuse to. */
import { describe, expect, test } from "bun:test";
import * as fc from "fast-check";
import { join } from "node:path";
import { systemClock } from "../../src/core/clock.ts";
import { Fault } from "../../src/core/fault.ts";
import {
  addCrash,
  CRASH_WINDOW_MS,
  markedModels,
  readCrashRecord,
  writeCrashRecord,
} from "../../src/provider/state/crash-record.ts";
import { EXIT_ENGINE_LOST } from "../../src/provider/lifecycle.ts";
import {
  INITIAL_SUPERVISOR,
  isCrash,
  RESTART_MAX_MS,
  stepSupervisor,
  supervisorDueMs,
  type StopSignal,
  type SupervisorEvent,
} from "../../src/provider/supervisor/supervisor-machine.ts";
import {
  runSupervised,
  type SupervisedChild,
  type SupervisorDeps,
  type SupervisorOptions,
} from "../../src/provider/supervisor/supervisor.ts";
import { memoryLog } from "../support/memory-log.ts";
import { tempDir } from "../support/temp-dir.ts";
import { waitFor } from "../support/wait.ts";

const STATE = (models: readonly string[]) => `
  const now = new Date().toISOString();
  require("fs").writeFileSync(process.env.STATE, JSON.stringify({ version: 1, mode: "local", phase: "serving", pid: process.pid,
    program_version: "1", models: ${JSON.stringify(models)}, provider_id: null, coordinator_url: null, local_url: null,
    requests_running: 0, requests_served: 0, trust: null, last_error: null, started_at: now, updated_at: now }));`;

interface Harness {
  readonly lines: string[];
  readonly spawned: number[];
  stop(signal: StopSignal): void;
  readonly end: ReturnType<typeof runSupervised>;
}

/** Waits between restarts are cut to nothing: their lengths are the machine's to decide and are tested there. */
const quickClock = (): SupervisorDeps["clock"] => {
  const clock = systemClock();
  return {
    ...clock,
    after: (delayMs, callback) => clock.after(delayMs >= 1_000 && delayMs <= RESTART_MAX_MS ? 1 : delayMs, callback),
  };
};

const supervise = (
  dataDir: string,
  script: string,
  change: Partial<SupervisorOptions> & { exactTimes?: boolean } = {},
): Harness => {
  const lines: string[] = [];
  const spawned: number[] = [];
  let handler: (signal: StopSignal) => void = () => undefined;
  const { exactTimes = false, ...options } = change;
  const end = runSupervised(
    {
      clock: exactTimes
        ? systemClock()
        : {
            ...quickClock(),
            monotonicMs: (() => {
              let ms = 0;
              return () => (ms += 30_000);
            })(),
          },
      log: memoryLog().log,
      writeLine: (line) => lines.push(line),
      onStopSignal: (given) => {
        handler = given;
      },
      spawnChild: () => {
        const child = spawnScript(script, { STATE: join(dataDir, "state.json"), RUN: String(spawned.length) });
        spawned.push(child.pid);
        return child;
      },
    },
    { dataDir, models: ["m"], force: false, json: true, ...options },
  );
  end.catch(() => undefined);
  return { lines, spawned, stop: (signal) => handler(signal), end };
};

const spawnScript = (script: string, environment: Record<string, string>): SupervisedChild => {
  const child = Bun.spawn([process.execPath, "-e", script], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "ignore",
    detached: true,
    env: { ...process.env, ...environment },
  });
  return {
    pid: child.pid,
    stdout: child.stdout,
    exited: child.exited.then(() => ({
      code: child.exitCode,
      signal: child.signalCode === null ? null : String(child.signalCode),
    })),
    kill: (signal) => child.kill(signal),
  };
};

const say = (event: string): string => `console.log(JSON.stringify({event:"${event}"}));`;

describe("decisions", () => {
  const event = fc.oneof<fc.Arbitrary<SupervisorEvent>[]>(
    fc.constant({ type: "start" }),
    fc.constant({ type: "tick" }),
    fc.record({ type: fc.constant("stop"), signal: fc.constantFrom("SIGINT", "SIGTERM") }),
    fc.record({
      type: fc.constant("exited"),
      exit: fc.oneof(
        fc.record({ code: fc.constantFrom(0, 1, 64, 86, 134, 139, 143), signal: fc.constant(null) }),
        fc.record({ code: fc.constant(null), signal: fc.constantFrom("SIGSEGV", "SIGABRT", "SIGKILL", "SIGTERM") }),
      ),
      fault: fc.constantFrom(null, new Fault("model_crashed", "x")),
    }),
  );

  test("one child at a time, bounded waits, and an end that stays", () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(event, fc.nat(40_000)), { maxLength: 60 }), (steps) => {
        let state = INITIAL_SUPERVISOR;
        let nowMs = 0;
        let alive = false;
        for (const [next, elapsedMs] of steps) {
          nowMs += elapsedMs;
          if (next.type === "exited" && !alive) continue;
          if (next.type === "exited") alive = false;
          const before = state;
          const [after, effects] = stepSupervisor(state, next, { nowMs, stopMs: 5_000 });
          state = after;
          for (const effect of effects) {
            if (effect.type === "spawn") {
              expect(alive).toBe(false);
              alive = true;
            }
            if (effect.type === "signal" || effect.type === "kill") expect(alive).toBe(true);
          }
          if (before.phase === "done") expect(after).toBe(before);
          if (after.phase === "waiting")
            expect((supervisorDueMs(after) ?? 0) - nowMs).toBeLessThanOrEqual(RESTART_MAX_MS);
          if (after.phase === "waiting") expect(alive).toBe(false);
        }
      }),
      { numRuns: 2_000 },
    );
  });

  test("backoff doubles to 30 s and starts over after a minute of life", () => {
    let state = INITIAL_SUPERVISOR;
    let nowMs = 0;
    const waits: number[] = [];
    const crash = { type: "exited", exit: { code: null, signal: "SIGSEGV" }, fault: null } as const;
    [state] = stepSupervisor(state, { type: "start" }, { nowMs, stopMs: 1 });
    for (let round = 0; round < 8; round += 1) {
      nowMs += round === 7 ? 60_000 : 100;
      const [waiting, effects] = stepSupervisor(state, crash, { nowMs, stopMs: 1 });
      for (const effect of effects) if (effect.type === "report_restart") waits.push(effect.waitMs);
      nowMs = supervisorDueMs(waiting) ?? nowMs;
      [state] = stepSupervisor(waiting, { type: "tick" }, { nowMs, stopMs: 1 });
      expect(state.phase).toBe("running");
    }
    expect(waits).toEqual([1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 1_000]);
  });

  test("what a crash is", () => {
    for (const code of [0, 1, 2, 64, 130, 143, 129]) expect(isCrash({ code, signal: null })).toBe(false);
    for (const code of [EXIT_ENGINE_LOST, 134, 137, 139]) expect(isCrash({ code, signal: null })).toBe(true);
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) expect(isCrash({ code: null, signal })).toBe(false);
    for (const signal of ["SIGSEGV", "SIGABRT", "SIGILL", "SIGBUS", "SIGKILL"])
      expect(isCrash({ code: null, signal })).toBe(true);
  });

  test("a model is marked by two crashes within the window only", () => {
    const once = addCrash({ version: 1, models: {} }, ["a", "b"], 1_000);
    expect(markedModels(once, ["a", "b"])).toEqual([]);
    expect(markedModels(addCrash(once, ["a"], 1_000 + CRASH_WINDOW_MS - 1), ["a", "b"])).toEqual(["a"]);
    expect(markedModels(addCrash(once, ["a"], 1_000 + CRASH_WINDOW_MS), ["a", "b"])).toEqual([]);
  });
});

describe("real children", () => {
  test("a clean end passes its code and lines through, without a restart", async () => {
    await using dir = await tempDir();
    for (const code of [0, 1, 64]) {
      const run = supervise(dir.path, `${say("error")} process.exitCode = ${code};`);
      expect(await run.end).toEqual({ exitCode: code, fault: null });
      expect(run.lines).toEqual(['{"event":"error"}']);
      expect(run.spawned.length).toBe(1);
    }
  });

  test("a crash is followed by a restart, and every line appears once", async () => {
    await using dir = await tempDir();
    const run = supervise(
      dir.path,
      `${say("serving")} process.stdout.write('{"event":"cut'); if (process.env.RUN === "0") process.kill(process.pid, "SIGSEGV"); else { process.stdout.write('"}\\n'); }`,
    );
    expect((await run.end).exitCode).toBe(0);
    expect(run.spawned.length).toBe(2);
    expect(run.lines).toEqual(['{"event":"serving"}', '{"event":"serving"}', '{"event":"cut"}']);
  });

  test("an engine that was lost is a crash too", async () => {
    await using dir = await tempDir();
    const run = supervise(dir.path, `process.exitCode = process.env.RUN === "0" ? ${EXIT_ENGINE_LOST} : 0;`);
    expect((await run.end).exitCode).toBe(0);
    expect(run.spawned.length).toBe(2);
  });

  test("a model in memory at two crashes is left alone until it is forced", async () => {
    await using dir = await tempDir();
    const crashing = `${STATE(["m"])} process.kill(process.pid, "SIGABRT");`;
    const run = supervise(dir.path, crashing);
    const end = await run.end;
    expect(run.spawned.length).toBe(2);
    expect(end.fault?.code).toBe("model_crashed");
    expect(end.fault?.hint).toContain("--force");
    expect(end.exitCode).toBe(1);
    const again = supervise(dir.path, crashing);
    expect(await again.end.catch((error: unknown) => (error as Fault).code)).toBe("model_crashed");
    expect(again.spawned.length).toBe(0);
    expect((await supervise(dir.path, "", { models: ["other"] }).end).exitCode).toBe(0);
    expect((await supervise(dir.path, "", { force: true }).end).exitCode).toBe(0);
    expect(markedModels(readCrashRecord(dir.path), ["m"])).toEqual([]);
  });

  test("the state of another process blames no model", async () => {
    await using dir = await tempDir();
    writeCrashRecord(dir.path, { version: 1, models: {} });
    const run = supervise(
      dir.path,
      `if (process.env.RUN < "3") { ${STATE(["m"]).replace("pid: process.pid", "pid: 1")} process.kill(process.pid, "SIGABRT"); }`,
    );
    expect((await run.end).exitCode).toBe(0);
    expect(run.spawned.length).toBe(4);
  });

  test("a stop reaches the child, and its last words come out", async () => {
    await using dir = await tempDir();
    for (const signal of ["SIGINT", "SIGTERM"] as const) {
      const run = supervise(
        dir.path,
        `process.on("${signal}", () => { ${say("stopped")} process.exit(0); }); setInterval(() => {}, 1000); ${say("ready")}`,
        { exactTimes: true },
      );
      await waitFor("the child", () => run.lines.includes('{"event":"ready"}'));
      run.stop(signal);
      expect(await run.end).toEqual({ exitCode: 0, fault: null });
      expect(run.lines.at(-1)).toBe('{"event":"stopped"}');
    }
  });

  test("a child that ignores the stop is killed at the deadline", async () => {
    await using dir = await tempDir();
    const run = supervise(dir.path, `process.on("SIGTERM", () => {}); setInterval(() => {}, 1000); ${say("ready")}`, {
      stopMs: 200,
      exactTimes: true,
    });
    await waitFor("the child", () => run.lines.length === 1);
    run.stop("SIGTERM");
    expect(await run.end).toEqual({ exitCode: 0, fault: null });
  });

  test("a second signal ends it at once with 130", async () => {
    await using dir = await tempDir();
    const run = supervise(dir.path, `process.on("SIGINT", () => {}); setInterval(() => {}, 1000); ${say("ready")}`, {
      exactTimes: true,
    });
    await waitFor("the child", () => run.lines.length === 1);
    run.stop("SIGINT");
    run.stop("SIGINT");
    expect((await run.end).exitCode).toBe(130);
    await waitFor("the child's end", () => {
      try {
        process.kill(run.spawned[0] ?? 0, 0);
        return false;
      } catch {
        return true;
      }
    });
  });
});
