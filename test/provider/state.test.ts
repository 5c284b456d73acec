/** Files in the data folder: state, lock, local key and record, crash-safe and private; and the address a person types. */
import { describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as fc from "fast-check";
import { Fault } from "../../src/core/fault.ts";
import { systemRandom } from "../../src/core/ids.ts";
import { toCoordinatorUrl } from "../../src/provider/link/coordinator-url.ts";
import {
  acquireLock,
  lockPath,
  readLockPid,
  systemProcesses,
  type ProcessProbe,
} from "../../src/provider/state/instance-lock.ts";
import {
  localKeyPath,
  openLocalKey,
  readLocalRecord,
  removeLocalRecord,
  writeLocalRecord,
} from "../../src/provider/local/local-record.ts";
import { openStateWriter, readState, statePath, type StateStart } from "../../src/provider/state/state-file.ts";
import { Tombstones } from "../../src/provider/jobs/tombstones.ts";
import { createFakeClock } from "../support/fake-clock.ts";
import { faultOf } from "../support/fault-of.ts";
import { memoryLog } from "../support/memory-log.ts";
import { tempDir } from "../support/temp-dir.ts";

const random = systemRandom();
const START: StateStart = {
  mode: "coordinator",
  pid: process.pid,
  program_version: "1",
  models: [],
  provider_id: "prov_x",
  coordinator_url: "ws://x",
};
const modeOf = (path: string): number => statSync(path).mode & 0o777;

describe("the state file", () => {
  test("is there from the first second, private, with its age", async () => {
    await using dir = await tempDir();
    const clock = createFakeClock();
    const state = openStateWriter({ clock, log: memoryLog().log }, dir.path, START);
    expect(modeOf(statePath(dir.path))).toBe(0o600);
    expect(readState({ dataDir: dir.path, nowMs: clock.nowMs() })?.state.phase).toBe("starting");
    state.update({ phase: "serving" });
    state.setError(new Fault("io_failed", "disk", { hint: "look" }));
    await clock.advance(7_000);
    const reading = readState({ dataDir: dir.path, nowMs: clock.nowMs() });
    expect(reading).toMatchObject({
      ageMs: 7_000,
      state: { phase: "serving", last_error: { code: "io_failed", hint: "look" } },
    });
    expect(readdirSync(dir.path)).toEqual(["state.json"]);
  });

  test("keeps the last verdict over a restart", async () => {
    await using dir = await tempDir();
    const clock = createFakeClock();
    const deps = { clock, log: memoryLog().log };
    const trust = {
      trust_level: "self_signed",
      status: "online",
      reason: "verified",
      seen: null,
      expected: null,
      retry_at: null,
      command: null,
      at: new Date(clock.nowMs()).toISOString(),
    };
    openStateWriter(deps, dir.path, START).update({ trust });
    expect(openStateWriter(deps, dir.path, START).current).toMatchObject({ phase: "starting", trust });
  });

  test("what is no state counts as none", async () => {
    await using dir = await tempDir();
    expect(readState({ dataDir: dir.path, nowMs: 0 })).toBeNull();
    for (const text of ["", "{", "[]", '{"version":2}', "x".repeat(2_000_000)]) {
      writeFileSync(statePath(dir.path), text);
      expect(readState({ dataDir: dir.path, nowMs: 0 })).toBeNull();
    }
  });

  test("a disk that refuses is counted, not fatal", async () => {
    await using dir = await tempDir();
    const memory = memoryLog();
    const state = openStateWriter({ clock: createFakeClock(), log: memory.log }, join(dir.path, "missing"), START);
    state.update({ phase: "serving" });
    expect(state.failedWrites).toBe(2);
    expect(memory.has("state_write_failed")).toBe(true);
  });
});

describe("the lock", () => {
  const probe = (starts: Record<number, string>): ProcessProbe => ({
    startOf: (pid) => starts[pid] ?? (pid === process.pid ? "me" : null),
  });

  test("a second provider is told which process has the folder", async () => {
    await using dir = await tempDir();
    const deps = { random, processes: systemProcesses() };
    const lock = acquireLock(deps, dir.path);
    expect(readLockPid(dir.path)).toBe(process.pid);
    const fault = faultOf(() => acquireLock(deps, dir.path));
    expect(fault.code).toBe("already_running");
    expect(fault.message).toContain(String(process.pid));
    lock[Symbol.dispose]();
    expect(readdirSync(dir.path)).toEqual([]);
    acquireLock(deps, dir.path)[Symbol.dispose]();
  });

  test("what dead or other processes left is taken over", async () => {
    await using dir = await tempDir();
    for (const left of ["4242\nthen\n", "4243\nthen\n", "", "nonsense", "-1\nx\n"]) {
      writeFileSync(lockPath(dir.path), left);
      const lock = acquireLock({ random, processes: probe({ 4243: "later" }) }, dir.path);
      expect(readLockPid(dir.path)).toBe(process.pid);
      lock[Symbol.dispose]();
    }
    expect(existsSync(lockPath(dir.path))).toBe(false);
  });

  test("a process whose start is unknown counts as alive", async () => {
    await using dir = await tempDir();
    for (const [left, starts] of [
      ["4242\nthen\n", { 4242: "unknown" }],
      ["4242\nunknown\n", { 4242: "now" }],
      ["4242\nthen\n", { 4242: "then" }],
    ] as const) {
      writeFileSync(lockPath(dir.path), left);
      expect(faultOf(() => acquireLock({ random, processes: probe(starts) }, dir.path)).code).toBe("already_running");
    }
  });

  test("only its own file is removed", async () => {
    await using dir = await tempDir();
    const lock = acquireLock({ random, processes: probe({}) }, dir.path);
    writeFileSync(lockPath(dir.path), "77\nother\n");
    lock[Symbol.dispose]();
    expect(readLockPid(dir.path)).toBe(77);
  });

  test("of many processes that start at once over a stale file, one wins", async () => {
    await using dir = await tempDir();
    writeFileSync(lockPath(dir.path), "999999999\nx\n");
    const script = `
      import { acquireLock, systemProcesses } from ${JSON.stringify(join(import.meta.dir, "../../src/provider/state/instance-lock.ts"))};
      import { systemRandom } from ${JSON.stringify(join(import.meta.dir, "../../src/core/ids.ts"))};
      try { acquireLock({ random: systemRandom(), processes: systemProcesses() }, ${JSON.stringify(dir.path)}); console.log("won"); }
      catch (error) { console.log(error.code); }
      process.stdin.on("data", () => {}).on("end", () => process.exit(0));`;
    const children = Array.from({ length: 4 }, () =>
      Bun.spawn([process.execPath, "-e", script], { stdin: "pipe", stdout: "pipe" }),
    );
    const words = await Promise.all(
      children.map(async (child) => {
        const { value } = await child.stdout.getReader().read();
        return new TextDecoder().decode(value).trim();
      }),
    );
    for (const child of children) await child.stdin.end();
    await Promise.all(children.map((child) => child.exited));
    expect(words.toSorted()).toEqual(["already_running", "already_running", "already_running", "won"]);
  }, 30_000);

  test("the system tells processes apart", () => {
    const processes = systemProcesses();
    expect(processes.startOf(process.pid)).toBe(processes.startOf(process.pid));
    expect(processes.startOf(process.pid)).not.toBe("unknown");
    expect(processes.startOf(1)).not.toBe(processes.startOf(process.pid));
    expect(processes.startOf(999_999_999)).toBeNull();
  });
});

describe("the local endpoint's files", () => {
  test("one key per folder, private again if it was not", async () => {
    await using dir = await tempDir();
    const key = openLocalKey(random, dir.path);
    expect(key).toMatch(/^dk-local-[A-Za-z0-9_-]{43}$/);
    expect(modeOf(localKeyPath(dir.path))).toBe(0o600);
    writeFileSync(localKeyPath(dir.path), `${key}\n`);
    expect(openLocalKey(random, dir.path)).toBe(key);
    writeFileSync(localKeyPath(dir.path), "short");
    expect(faultOf(() => openLocalKey(random, dir.path)).code).toBe("config_invalid");
  });

  test("a record is removed by its own process only", async () => {
    await using dir = await tempDir();
    const record = {
      base_url: "http://x/v1",
      api_key: "k",
      host: "127.0.0.1",
      port: 1,
      pid: 5,
      version: "1",
      updated_at: new Date(0).toISOString(),
    };
    writeLocalRecord(dir.path, record);
    removeLocalRecord(dir.path, 6);
    expect(readLocalRecord(dir.path)).toEqual(record);
    expect(modeOf(join(dir.path, "local.json"))).toBe(0o600);
    removeLocalRecord(dir.path, 5);
    expect(readLocalRecord(dir.path)).toBeNull();
  });

  test("a folder in the place of a file is a fault, not a crash", async () => {
    await using dir = await tempDir();
    mkdirSync(localKeyPath(dir.path));
    expect(faultOf(() => openLocalKey(random, dir.path)).code).toBe("io_failed");
  });
});

describe("the coordinator's address", () => {
  test("every form leads to one socket URL", () => {
    for (const text of [
      "http://127.0.0.1:8080",
      "ws://127.0.0.1:8080",
      "ws://127.0.0.1:8080/ws/provider",
      "http://127.0.0.1:8080/",
      "http://127.0.0.1:8080/v1",
      "127.0.0.1:8080",
      " ws://127.0.0.1:8080/ws/provider/ ",
    ])
      expect(toCoordinatorUrl(text)).toEqual({ socketUrl: "ws://127.0.0.1:8080/ws/provider", warning: null });
    for (const text of ["https://db.example", "wss://db.example/ws/provider", "db.example"])
      expect(toCoordinatorUrl(text)).toEqual({ socketUrl: "wss://db.example/ws/provider", warning: null });
    expect(toCoordinatorUrl("https://db.example/behind/proxy").socketUrl).toBe(
      "wss://db.example/behind/proxy/ws/provider",
    );
    for (const text of ["ws://localhost:1", "ws://[::1]:1"]) expect(toCoordinatorUrl(text).warning).toBeNull();
    expect(toCoordinatorUrl("ws://10.0.0.2:1").warning).toContain("not encrypted");
  });

  test("anything else is a usage fault", () => {
    for (const text of ["", "ftp://x", "http://", "ws://u:p@x", "https://x:99999"])
      expect(faultOf(() => toCoordinatorUrl(text)).code).toBe("usage");
    fc.assert(
      fc.property(fc.string(), (text) => {
        try {
          expect(toCoordinatorUrl(text).socketUrl).toMatch(/^wss?:\/\/.+\/ws\/provider$/);
        } catch (error) {
          expect((error as Fault).code).toBe("usage");
        }
      }),
    );
  });
});

test("tombstones last 60 s and are bounded", async () => {
  const clock = createFakeClock();
  const tombstones = new Tombstones(clock);
  tombstones.add("a");
  await clock.advance(59_999);
  expect(tombstones.has("a")).toBe(true);
  await clock.advance(1);
  expect(tombstones.has("a")).toBe(false);
  for (let index = 0; index < 12_000; index += 1) tombstones.add(`id${index}`);
  expect(tombstones.size).toBe(10_000);
  expect(tombstones.has("id11999")).toBe(true);
});
