/** `start --local` as a whole: order of events, files while it runs and after, faults of a start, and the end. */
import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { systemClock } from "../../src/core/clock.ts";
import { Fault } from "../../src/core/fault.ts";
import { createIds, systemRandom } from "../../src/core/ids.ts";
import type { Engine } from "../../src/engine/engine.ts";
import { createFakeEngine } from "../../src/engine/fake-engine.ts";
import { EXIT_ENGINE_LOST } from "../../src/provider/lifecycle.ts";
import { startLocalProvider, type LocalProviderOptions } from "../../src/provider/local/local-provider.ts";
import { readLocalRecord } from "../../src/provider/local/local-record.ts";
import { readState } from "../../src/provider/state/state-file.ts";
import { memoryLog } from "../support/memory-log.ts";
import { tempDir } from "../support/temp-dir.ts";

const deps = () => ({
  clock: systemClock(),
  random: systemRandom(),
  ids: createIds(systemRandom()),
  log: memoryLog().log,
});

const optionsFor = (dataDir: string, seen: string[], open: () => Promise<Engine>): LocalProviderOptions => ({
  dataDir,
  version: "1.2.3",
  host: "127.0.0.1",
  port: 0,
  providerId: "prov_x",
  model: { id: "demo", hash: () => Promise.resolve({ manifestSha256: "5".repeat(64) }), open },
  events: {
    onPhase: (phase) => seen.push(phase),
    onServing: ({ models }) => seen.push(`serving ${models.join()}`),
    onFault: (fault) => seen.push(`fault ${fault.code}`),
  },
  onListening: () => seen.push("listening"),
});

const stateOf = (dataDir: string) => readState({ dataDir, nowMs: Date.now() })?.state;

test("events come in order, and the address works as soon as it is told", async () => {
  await using dir = await tempDir();
  const seen: string[] = [];
  const engine = createFakeEngine({ model: { id: "demo" } });
  const provider = await startLocalProvider(
    deps(),
    optionsFor(dir.path, seen, () => Promise.resolve(engine)),
  );
  expect(seen).toEqual(["hashing", "loading", "listening", "serving demo"]);
  const record = readLocalRecord(dir.path);
  expect(record).toMatchObject({
    base_url: `${provider.url}/v1`,
    api_key: provider.apiKey,
    pid: process.pid,
    version: "1.2.3",
  });
  expect(stateOf(dir.path)).toMatchObject({
    mode: "local",
    phase: "serving",
    models: ["demo"],
    local_url: provider.url,
  });
  const response = await fetch(`${record?.base_url}/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${record?.api_key}` },
    body: JSON.stringify({ model: "demo", messages: [{ role: "user", content: "x" }] }),
  });
  expect(response.status).toBe(200);
  await Promise.all([provider.stop({ graceMs: 0 }), provider.stop({ graceMs: 0 })]);
  expect(readLocalRecord(dir.path)).toBeNull();
  expect(existsSync(join(dir.path, "provider.pid"))).toBe(false);
  expect(stateOf(dir.path)).toMatchObject({ phase: "stopped", models: [], local_url: null });
  expect(await engine.ended).toBeNull();
});

test("a second provider in the folder is refused and leaves the first alone", async () => {
  await using dir = await tempDir();
  const engine = createFakeEngine({ model: { id: "demo" } });
  const first = await startLocalProvider(
    deps(),
    optionsFor(dir.path, [], () => Promise.resolve(engine)),
  );
  const second = startLocalProvider(
    deps(),
    optionsFor(dir.path, [], () => Promise.reject(new Error("never opened"))),
  );
  expect(await second.catch((error: unknown) => (error as Fault).code)).toBe("already_running");
  expect(stateOf(dir.path)?.phase).toBe("serving");
  expect(readLocalRecord(dir.path)?.base_url).toBe(`${first.url}/v1`);
  await first.stop({ graceMs: 0 });
});

test("a model that does not load ends the start with its fault and a truthful state", async () => {
  await using dir = await tempDir();
  const seen: string[] = [];
  const fault = new Fault("model_invalid", "broken file", { hint: "download it again" });
  const started = startLocalProvider(
    deps(),
    optionsFor(dir.path, seen, () => Promise.reject(fault)),
  );
  expect(await started.catch((error: unknown) => error)).toBe(fault);
  expect(seen).toEqual(["hashing", "loading"]);
  expect(stateOf(dir.path)).toMatchObject({ phase: "failed", last_error: { code: "model_invalid" } });
  expect(existsSync(join(dir.path, "provider.pid"))).toBe(false);
  expect(readLocalRecord(dir.path)).toBeNull();
});

test("a port in use is known before anything is hashed", async () => {
  await using dir = await tempDir();
  const seen: string[] = [];
  const other = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response("other") });
  const options = { ...optionsFor(dir.path, seen, () => Promise.reject(new Error("never"))), port: other.port ?? 0 };
  expect(await startLocalProvider(deps(), options).catch((error: unknown) => (error as Fault).code)).toBe(
    "address_in_use",
  );
  expect(seen).toEqual([]);
  await other.stop(true);
});

test("while the model loads it is known but unserved; a crash later asks for the end of the process", async () => {
  await using dir = await tempDir();
  const engine = createFakeEngine({ model: { id: "demo" } });
  const { promise, resolve } = Promise.withResolvers<Engine>();
  const { promise: loading, resolve: onLoading } = Promise.withResolvers<string>();
  const options = optionsFor(dir.path, [], () => {
    onLoading(stateOf(dir.path)?.local_url ?? "");
    return promise;
  });
  const starting = startLocalProvider(deps(), options);
  const health = await fetch(`${await loading}/health`);
  expect(await health.json()).toMatchObject({ providers: 0 });
  expect(stateOf(dir.path)).toMatchObject({ phase: "loading", models: ["demo"] });
  resolve(engine);
  const provider = await starting;
  engine.crash();
  expect((await provider.ended).exitCode).toBe(EXIT_ENGINE_LOST);
  await provider.stop({ graceMs: 0 });
});
