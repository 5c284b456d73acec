/** kill -9 and Ctrl-C on real processes in the middle of a real stream: who notices, who recovers, what is left. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { streamChat, type StreamResult } from "../support/chat-stream.ts";
import { startDarkbloom, type DarkbloomProcess } from "../support/darkbloom-process.ts";
import {
  capitalQuestion,
  createJoinToken,
  createKey,
  DEMO_MODEL,
  LONG_CONTEXT,
  longStream,
  MODEL_ID,
  serveCoordinator,
  startNetwork,
  startProviderProcess,
  warmUpNative,
} from "../support/process-network.ts";
import { processesNaming, providerPidOf } from "../support/process-tree.ts";
import { tempDir, type TempDir } from "../support/temp-dir.ts";
import { waitFor } from "../support/wait.ts";

const DEADLINE_MS = 110_000;
const STOP_DEADLINE_MS = 5_000;

let dir: TempDir;
beforeAll(async () => {
  await warmUpNative();
  dir = await tempDir();
}, 600_000);
afterAll(() => dir[Symbol.asyncDispose]());

const expectBrokenOff = (result: StreamResult): void => {
  expect(result.status).toBe(200);
  expect(result.text).not.toBe("");
  expect(result.done).toBe(false);
  const errors = result.chunks.filter((chunk) => chunk.error !== undefined);
  expect(errors).toHaveLength(1);
  expect(result.chunks.at(-1)).toEqual({
    error: { type: "provider_error", message: expect.any(String), code: expect.any(String), param: null },
  } as never);
};

/** The running child of a provider; it is another process than the parent that was started. */
const childOf = async (provider: DarkbloomProcess, dataDir: string, not?: number): Promise<number> =>
  waitFor(
    "the child's process id",
    () => {
      const pid = providerPidOf(dataDir);
      return pid === provider.pid || pid === not ? null : pid;
    },
    30_000,
  );

const expectNothingLeft = async (dataDir: string): Promise<void> => {
  await waitFor("no process of this folder to be left", () => processesNaming(dataDir).length === 0, 5_000);
  const left = readdirSync(dataDir);
  for (const file of ["provider.pid", "local.json", "admin.sock"]) expect(left).not.toContain(file);
};

describe("kill -9 of the provider's child", () => {
  test(
    "in mid-stream: an error event and no [DONE]; coordinator healthy; restart; the next request is served",
    async () => {
      await using network = await startNetwork(join(dir.path, "k"));
      const { coordinator, provider, key, token, providerDir: dataDir } = network;
      const child = await childOf(provider, dataDir);
      const stream = longStream({ baseUrl: coordinator.url, key, body: capitalQuestion() });
      await stream.started;
      process.kill(child, "SIGKILL");
      expectBrokenOff(await stream.result);
      const health = await fetch(`${coordinator.url}/health`);
      expect([health.status, await health.json()]).toMatchObject([200, { status: "ok", draining: false }]);

      await provider.events("serving", 2);
      expect(await childOf(provider, dataDir, child)).not.toBe(child);
      const next = await streamChat({ baseUrl: coordinator.url, key, body: capitalQuestion() });
      expect(next).toMatchObject({ status: 200, done: true });
      expect(next.text).toContain("Paris");

      // The second crash within ten minutes marks the model: the parent gives up and says why and what to type.
      process.kill(await childOf(provider, dataDir, child), "SIGKILL");
      expect(await provider.exited).toBe(1);
      expect(provider.lines.at(-1)).toMatchObject({ event: "error", code: "model_crashed" });
      expect(String(provider.lines.at(-1)?.["hint"])).toContain("--force");
      await waitFor("no process of this folder to be left", () => processesNaming(dataDir).length === 0, 5_000);

      await using again = startProviderProcess({ dataDir, coordinatorUrl: coordinator.url, token });
      expect(await again.exited).toBe(1);
      expect(again.lines).toMatchObject([{ event: "error", code: "model_crashed" }]);
      await using forced = startProviderProcess({ dataDir, coordinatorUrl: coordinator.url, token, args: ["--force"] });
      await forced.event("serving");
      expect(await streamChat({ baseUrl: coordinator.url, key, body: capitalQuestion() })).toMatchObject({
        done: true,
      });
    },
    DEADLINE_MS,
  );

  test(
    "of start --local: the same for its own consumer, and the same key afterwards",
    async () => {
      const dataDir = join(dir.path, "kl");
      const args = ["--port", "0", "--model", DEMO_MODEL, "--id", MODEL_ID, "--data-dir", dataDir, ...LONG_CONTEXT];
      await using local = startDarkbloom(["start", "--local", "--json", ...args]);
      await local.event("serving");
      const first = await local.event("listening");
      const stream = longStream({
        baseUrl: String(first["url"]),
        key: String(first["api_key"]),
        body: capitalQuestion(),
      });
      // The endpoint dies with its child, so the consumer sees its connection break and can see no more.
      const broken = stream.result.then(
        () => "ended as if it were whole",
        () => "broken",
      );
      await stream.started;
      process.kill(await childOf(local, dataDir), "SIGKILL");
      expect(await broken).toBe("broken");
      await local.events("serving", 2);
      const [, second] = await local.events("listening", 2);
      expect(second?.["api_key"]).toBe(first["api_key"]);
      const next = { baseUrl: String(second?.["url"]), key: String(second?.["api_key"]), body: capitalQuestion() };
      expect(await streamChat(next)).toMatchObject({ status: 200, done: true });
      local.kill("SIGTERM");
      expect(await local.exited).toBe(0);
      await expectNothingLeft(dataDir);
    },
    DEADLINE_MS,
  );
});

describe("kill -9 of the parent", () => {
  test(
    "ends the child too: nobody would restart or stop it",
    async () => {
      const dataDir = join(dir.path, "pp");
      const args = ["--port", "0", "--model", DEMO_MODEL, "--data-dir", dataDir];
      await using local = startDarkbloom(["start", "--local", "--json", ...args]);
      await local.event("serving");
      const child = await childOf(local, dataDir);
      local.kill("SIGKILL");
      await waitFor("the child to end", () => !processesNaming(dataDir).includes(child), 8_000);
      await expectNothingLeft(dataDir);
    },
    DEADLINE_MS,
  );
});

describe("kill -9 of the coordinator", () => {
  test(
    "the provider comes back by itself; keys and join tokens survive",
    async () => {
      const coordinatorDir = join(dir.path, "cc");
      await using first = await serveCoordinator({ dataDir: coordinatorDir });
      const { key } = await createKey(coordinatorDir);
      const { token } = await createJoinToken(coordinatorDir);
      const dataDir = join(dir.path, "cp");
      const where = { dataDir, coordinatorUrl: first.url, token, args: LONG_CONTEXT };
      await using provider = startProviderProcess(where);
      const serving = await provider.event("serving");
      const stream = longStream({ baseUrl: first.url, key, body: capitalQuestion() });
      const broken = stream.result.then(
        (result) => (result.done ? "ended as if it were whole" : "broken"),
        () => "broken",
      );
      await stream.started;
      first.process.kill("SIGKILL");
      await first.process.exited;
      expect(await broken).toBe("broken");
      expect(readdirSync(coordinatorDir)).toContain("admin.sock");

      await using second = await serveCoordinator({ dataDir: coordinatorDir, port: first.port });
      const [, again] = await provider.events("serving", 2);
      expect(again).toEqual(serving);
      const next = await streamChat({ baseUrl: second.url, key, body: capitalQuestion() });
      expect(next).toMatchObject({ status: 200, done: true });
      // The aborted stream's row is free again and the same token lets another machine in.
      await using other = startProviderProcess({ dataDir: join(dir.path, "cp2"), coordinatorUrl: second.url, token });
      await other.event("serving");
      expect((await createKey(coordinatorDir)).key).not.toBe(key);
    },
    DEADLINE_MS,
  );
});

describe("Ctrl-C while a stream runs", () => {
  test(
    "to the provider's parent and to the coordinator: both end clean in time, the consumer gets an error event",
    async () => {
      await using network = await startNetwork(join(dir.path, "i"));
      const { coordinator, provider, key, providerDir: dataDir } = network;
      const stream = longStream({ baseUrl: coordinator.url, key, body: capitalQuestion() });
      await stream.started;
      const sentMs = performance.now();
      provider.kill("SIGINT");
      expect(await provider.exited).toBe(0);
      expect(performance.now() - sentMs).toBeLessThan(STOP_DEADLINE_MS);
      expect(provider.lines.at(-1)).toEqual({ event: "stopped" });
      expectBrokenOff(await stream.result);
      await expectNothingLeft(dataDir);

      coordinator.process.kill("SIGINT");
      expect(await coordinator.process.exited).toBe(0);
      expect(coordinator.process.lines.at(-1)).toEqual({ event: "stopped" });
      await expectNothingLeft(coordinator.dataDir);
    },
    DEADLINE_MS,
  );

  test(
    "to the coordinator first: it ends in time although the stream does not",
    async () => {
      await using network = await startNetwork(join(dir.path, "j"));
      const { coordinator, key } = network;
      const stream = longStream({ baseUrl: coordinator.url, key, body: capitalQuestion() });
      const end = stream.result.then(
        (result) => (result.done ? "ended as if it were whole" : "broken"),
        () => "broken",
      );
      await stream.started;
      const sentMs = performance.now();
      coordinator.process.kill("SIGINT");
      expect(await coordinator.process.exited).toBe(0);
      expect(performance.now() - sentMs).toBeLessThan(STOP_DEADLINE_MS);
      expect(coordinator.process.lines.at(-1)).toEqual({ event: "stopped" });
      expect(await end).toBe("broken");
      await expectNothingLeft(coordinator.dataDir);
    },
    DEADLINE_MS,
  );

  test(
    "to the whole process group, as a terminal sends it: the child is told once and all end clean",
    async () => {
      const dataDir = join(dir.path, "gl");
      const args = ["--port", "0", "--model", DEMO_MODEL, "--id", MODEL_ID, "--data-dir", dataDir, ...LONG_CONTEXT];
      await using local = startDarkbloom(["start", "--local", "--json", ...args], { ownGroup: true });
      await local.event("serving");
      const listening = await local.event("listening");
      const stream = longStream({
        baseUrl: String(listening["url"]),
        key: String(listening["api_key"]),
        body: capitalQuestion(),
      });
      const end = stream.result.catch(() => null);
      await stream.started;
      const sentMs = performance.now();
      process.kill(-local.pid, "SIGINT");
      expect(await local.exited).toBe(0);
      expect(performance.now() - sentMs).toBeLessThan(STOP_DEADLINE_MS);
      expect(local.lines.at(-1)).toEqual({ event: "stopped" });
      expect((await end)?.done).not.toBe(true);
      await expectNothingLeft(dataDir);
    },
    DEADLINE_MS,
  );

  test(
    "while the model is loading: it does not wait for the load and leaves nothing behind",
    async () => {
      const dataDir = join(dir.path, "ll");
      const args = ["--port", "0", "--model", DEMO_MODEL, "--data-dir", dataDir];
      await using local = startDarkbloom(["start", "--local", "--json", ...args]);
      await local.event("phase");
      local.kill("SIGINT");
      expect(await local.exited).toBe(0);
      expect(local.lines.at(-1)).toEqual({ event: "stopped" });
      await expectNothingLeft(dataDir);
    },
    DEADLINE_MS,
  );
});

describe("Ctrl-C of the demo", () => {
  test(
    "while it keeps serving: one line per event, a clean end, nothing left in the temporary folder",
    async () => {
      await using temporary = await tempDir();
      await using demo = startDarkbloom(["demo", "--json"], { env: { TMPDIR: temporary.path } });
      const listening = await demo.event("listening");
      const request = { baseUrl: String(listening["url"]), key: String(listening["api_key"]) };
      const body = capitalQuestion(String(listening["model"]));
      expect(await streamChat({ ...request, body })).toMatchObject({ status: 200, done: true });
      demo.kill("SIGINT");
      expect(await demo.exited).toBe(0);
      expect(demo.lines.map((line) => line["event"] ?? "answer")).toEqual(["answer", "listening", "stopped"]);
      expect(demo.stderr()).toBe("");
      expect(readdirSync(temporary.path)).toEqual([]);
    },
    DEADLINE_MS,
  );
});

test(
  "a second SIGTERM, which service managers send to the group, does not cut the drain short",
  async () => {
    await using network = await startNetwork(join(dir.path, "t"));
    const { coordinator, key } = network;
    const stream = longStream({ baseUrl: coordinator.url, key, body: capitalQuestion() });
    const end = stream.result.catch(() => null);
    await stream.started;
    coordinator.process.kill("SIGTERM");
    const request = { baseUrl: coordinator.url, key, body: capitalQuestion() };
    await waitFor("the first signal to arrive", async () => (await streamChat(request)).status === 429, 5_000);
    coordinator.process.kill("SIGTERM");
    for (let i = 0; i < 3; i++) expect((await streamChat(request)).status).toBe(429);
    // A person still can.
    coordinator.process.kill("SIGINT");
    expect(await coordinator.process.exited).toBe(130);
    await end;
  },
  DEADLINE_MS,
);

describe("a second Ctrl-C", () => {
  test(
    "ends start at once with 130",
    async () => {
      const dataDir = join(dir.path, "sl");
      const args = ["--port", "0", "--model", DEMO_MODEL, "--id", MODEL_ID, "--data-dir", dataDir, ...LONG_CONTEXT];
      await using local = startDarkbloom(["start", "--local", "--json", ...args]);
      await local.event("serving");
      const listening = await local.event("listening");
      const stream = longStream({
        baseUrl: String(listening["url"]),
        key: String(listening["api_key"]),
        body: capitalQuestion(),
      });
      const end = stream.result.catch(() => null);
      await stream.started;
      local.kill("SIGINT");
      // The first one has arrived when the endpoint no longer takes requests.
      const request = { baseUrl: String(listening["url"]), key: String(listening["api_key"]), body: capitalQuestion() };
      await waitFor("the first signal to arrive", async () => (await streamChat(request)).status === 429, 5_000);
      local.kill("SIGINT");
      expect(await local.exited).toBe(130);
      await end;
      await waitFor("no process of this folder to be left", () => processesNaming(dataDir).length === 0, 5_000);
    },
    DEADLINE_MS,
  );

  test(
    "ends the coordinator at once with 130",
    async () => {
      await using network = await startNetwork(join(dir.path, "s"));
      const { coordinator, key } = network;
      const stream = longStream({ baseUrl: coordinator.url, key, body: capitalQuestion() });
      const end = stream.result.catch(() => null);
      await stream.started;
      coordinator.process.kill("SIGINT");
      const request = { baseUrl: coordinator.url, key, body: capitalQuestion() };
      await waitFor("the first signal to arrive", async () => (await streamChat(request)).status === 429, 5_000);
      coordinator.process.kill("SIGINT");
      expect(await coordinator.process.exited).toBe(130);
      await end;
    },
    DEADLINE_MS,
  );
});
