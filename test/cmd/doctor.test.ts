/** What the doctor says about a model, a coordinator and its verdict, each made by the test. */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { systemClock } from "../../src/core/clock.ts";
import { openStateWriter } from "../../src/provider/state/state-file.ts";
import { runDarkbloom } from "../support/darkbloom-process.ts";
import { memoryLog } from "../support/memory-log.ts";
import { tempDir } from "../support/temp-dir.ts";

const DEMO_MODEL = join(import.meta.dir, "../../assets/demo-model/darkbloom-demo-q8_0.gguf");

interface Report {
  readonly checks: readonly {
    readonly id: string;
    readonly status: string;
    readonly detail: string;
    readonly fix: string | null;
  }[];
  readonly summary: { readonly pass: number; readonly warn: number; readonly fail: number };
}

const doctor = async (...args: string[]) => {
  const { code, lines } = await runDarkbloom(["doctor", "--json", ...args]);
  const report = lines[0] as unknown as Report;
  const check = (id: string) => report.checks.find((candidate) => candidate.id === id);
  return { code, lines, report, check };
};

test("a sound machine passes; the daemon is absent", async () => {
  await using dir = await tempDir();
  const { code, report, check } = await doctor("--data-dir", dir.path, "--model", DEMO_MODEL);
  expect(report.summary).toEqual({ pass: 8, warn: 0, fail: 0 });
  expect(code).toBe(0);
  expect(check("native library")?.detail).toContain("passed its self-test");
  expect(check("memory")?.detail).toContain("needs");
});

test("a damaged model and a dead coordinator fail with what to do, and the last line says so", async () => {
  await using dir = await tempDir();
  const broken = join(dir.path, "broken.gguf");
  await Bun.write(broken, await Bun.file(DEMO_MODEL).slice(0, 100_000).bytes());
  const { code, lines, check } = await doctor(
    "--data-dir",
    dir.path,
    "--model",
    broken,
    "--coordinator-url",
    "ws://127.0.0.1:9",
  );
  expect(code).toBe(1);
  expect(check("file")).toMatchObject({ status: "fail" });
  expect(check("reachable")).toMatchObject({ status: "fail", detail: "http://127.0.0.1:9 does not answer" });
  expect(check("reachable")?.fix).toContain("check that it runs");
  expect(lines.at(-1)).toMatchObject({ event: "error", code: "checks_failed" });
});

test("the coordinator's last verdict is told with its reason and age", async () => {
  await using dir = await tempDir();
  const { log } = memoryLog();
  const clock = systemClock();
  const writer = openStateWriter({ clock, log }, dir.path, {
    mode: "coordinator",
    pid: process.pid,
    models: ["m"],
    program_version: "0.0.0",
    provider_id: "prov_x",
    coordinator_url: "ws://127.0.0.1:9/ws/provider",
  });
  writer.update({
    trust: {
      trust_level: "none",
      status: "untrusted",
      reason: "model_hash_mismatch",
      seen: "aa",
      expected: "bb",
      retry_at: null,
      command: "darkbloom hash",
      at: new Date(clock.nowMs() - 30_000).toISOString(),
    },
  });
  const { code, check } = await doctor("--data-dir", dir.path, "--model", DEMO_MODEL);
  expect(code).toBe(1);
  expect(check("verdict")).toMatchObject({ status: "fail", fix: "darkbloom hash" });
  expect(check("verdict")?.detail).toMatch(
    /^untrusted, trust level none, told 3\d s ago \(model_hash_mismatch\): saw aa, expected bb$/,
  );
  expect(check("process")?.detail).toContain("running");
});

test("--strict makes warnings failures", async () => {
  await using dir = await tempDir();
  const { report, code } = await doctor("--data-dir", dir.path, "--strict");
  expect(report.summary).toMatchObject({ warn: 1, fail: 0 });
  expect(code).toBe(1);
});
