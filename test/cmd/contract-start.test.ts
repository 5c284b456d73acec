/** The contract of `serve-coordinator` and `start` for scripts: events in order, ready means ready, ends, and accounts that count at once. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { createServer, type Server } from "node:net";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { WebSocket } from "ws";
import { streamChat } from "../support/chat-stream.ts";
import { runDarkbloom, startDarkbloom, type DarkbloomProcess, type JsonLine } from "../support/darkbloom-process.ts";
import {
  createJoinToken,
  createKey,
  DEMO_MODEL,
  MODEL_ID,
  serveCoordinator,
  startProviderProcess,
  warmUpNative,
  type RunningCoordinator,
} from "../support/process-network.ts";
import { tempDir, type TempDir } from "../support/temp-dir.ts";
import { waitFor } from "../support/wait.ts";

const DEADLINE_MS = 120_000;
const STOP_DEADLINE_MS = 5_000;

let dir: TempDir;
let coordinator: RunningCoordinator;
beforeAll(async () => {
  await warmUpNative();
  dir = await tempDir();
  coordinator = await serveCoordinator({ dataDir: join(dir.path, "coordinator") });
}, 600_000);
afterAll(async () => {
  await coordinator[Symbol.asyncDispose]();
  await dir[Symbol.asyncDispose]();
});

const ask = (baseUrl: string, key: string, model = MODEL_ID) =>
  streamChat({
    baseUrl,
    key,
    body: { model, messages: [{ role: "user", content: "What is the capital of France?" }], temperature: 0 },
  });

/** Nothing but objects on stdout, whatever is on stderr. */
const expectOnlyJson = (process: DarkbloomProcess): void => {
  const text = process.stdout().split("\n").slice(0, -1);
  expect(text.map((line): unknown => JSON.parse(line))).toEqual([...process.lines]);
};

/** Sends the signal and sees a clean end in time, with the last word and no stack. */
const expectCleanEnd = async (process: DarkbloomProcess, signal: NodeJS.Signals): Promise<void> => {
  const sentMs = performance.now();
  process.kill(signal);
  expect(await process.exited).toBe(0);
  expect(performance.now() - sentMs).toBeLessThan(STOP_DEADLINE_MS);
  expect(process.lines.at(-1)).toEqual({ event: "stopped" });
  expectOnlyJson(process);
  expect(process.stderr()).not.toMatch(/^\s+at /m);
};

const keysOf = (line: JsonLine | undefined): string => Object.keys(line ?? {}).join(" ");

/** Phases and events in their order. */
const storyOf = (process: DarkbloomProcess): string =>
  process.lines.map((line) => line["phase"] ?? line["event"]).join(" ");

describe("serve-coordinator", () => {
  for (const signal of ["SIGTERM", "SIGINT"] as const)
    test(
      `says where it listens, and ${signal} ends it with the last word`,
      async () => {
        const dataDir = join(dir.path, `serve-${signal}`);
        await using running = await serveCoordinator({ dataDir });
        const [line] = running.process.lines;
        expect(keysOf(line)).toBe("event url provider_url");
        expect(running.url).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/);
        expect(running.providerUrl).toBe(`${running.url.replace("http", "ws")}/ws/provider`);
        expect((await fetch(`${running.url}/health`)).status).toBe(200);
        await expectCleanEnd(running.process, signal);
        expect(readdirSync(dataDir).toSorted()).toEqual(["coordinator.db", "coordinator.key"]);
      },
      DEADLINE_MS,
    );

  test(
    "without --json it prints a start line and a curl line that work as they are",
    async () => {
      const dataDir = join(dir.path, "people");
      await using running = startDarkbloom(["serve-coordinator", "--port", "0", "--data-dir", dataDir]);
      await waitFor("the last line", () => running.stdout().includes("Ctrl-C stops it."), 30_000);
      const start = / start --coordinator-url (\S+) --join (jt-db-\S+) --model <file\.gguf>/.exec(running.stdout());
      const curl = /curl -N (\S+)\/v1\/chat\/completions -H 'Authorization: Bearer (sk-db-[0-9a-f]{64})'/.exec(
        running.stdout(),
      );
      const [, coordinatorUrl = "", token = ""] = start ?? [];
      const [, url = "", key = ""] = curl ?? [];
      await using provider = startProviderProcess({ dataDir: join(dir.path, "people-p"), coordinatorUrl, token });
      await provider.event("serving");
      expect(await ask(url, key)).toMatchObject({ status: 200, done: true });
    },
    DEADLINE_MS,
  );
});

describe("start with a coordinator", () => {
  test(
    "phases, then serving, and the very next request succeeds",
    async () => {
      const { key } = await createKey(coordinator.dataDir);
      const { token } = await createJoinToken(coordinator.dataDir);
      const dataDir = join(dir.path, "provider");
      await using provider = startProviderProcess({ dataDir, coordinatorUrl: coordinator.providerUrl, token });
      const serving = await provider.event("serving");
      const answer = await ask(coordinator.url, key);
      expect(answer).toMatchObject({ status: 200, done: true });
      expect(answer.text).toContain("Paris");

      expect(keysOf(serving)).toBe("event models provider_id trust_level");
      expect(serving).toMatchObject({ models: [MODEL_ID], trust_level: "self_signed" });
      expect(serving["provider_id"]).toMatch(/^prov_[0-9a-f]{24}$/);
      expect(storyOf(provider)).toBe("hashing loading connecting serving");
      expect(provider.lines.slice(0, 3).map(keysOf)).toEqual(["event phase", "event phase", "event phase"]);
      await expectCleanEnd(provider, "SIGTERM");
      expect(readdirSync(dataDir).toSorted()).toEqual(["file-hashes.json", "identity.key", "state.json"]);
    },
    DEADLINE_MS,
  );

  const FORMS: Readonly<Record<string, (providerUrl: string) => string>> = {
    "ws with path": (url) => url,
    "ws without path": (url) => new URL(url).origin.replace("http", "ws"),
    "http without path": (url) => `http://${new URL(url).host}`,
    "http with a slash": (url) => `http://${new URL(url).host}/`,
    "http with /v1": (url) => `http://${new URL(url).host}/v1`,
    "http with path": (url) => url.replace("ws:", "http:"),
    "host and port alone": (url) => new URL(url).host,
  };
  test(
    "every way to write the coordinator's address, and none at all",
    async () => {
      const { token } = await createJoinToken(coordinator.dataDir);
      const seen: string[] = [];
      for (const [form, toUrl] of Object.entries(FORMS)) {
        const dataDir = join(dir.path, "forms");
        await using provider = startProviderProcess({ dataDir, coordinatorUrl: toUrl(coordinator.providerUrl), token });
        await provider.event("serving");
        seen.push(form);
      }
      const args = ["--join", token, "--model", DEMO_MODEL, "--data-dir", join(dir.path, "forms")];
      await using provider = startDarkbloom(["start", "--json", ...args]);
      expect(await provider.event("serving")).toMatchObject({ models: ["darkbloom-demo-q8_0"] });
      expect(seen).toEqual(Object.keys(FORMS));
    },
    DEADLINE_MS,
  );
});

describe("start --local", () => {
  for (const signal of ["SIGTERM", "SIGINT"] as const)
    test(
      `listening and serving, the next request succeeds, ${signal} leaves nothing behind`,
      async () => {
        const dataDir = join(dir.path, "local");
        const args = ["--port", "0", "--model", DEMO_MODEL, "--data-dir", dataDir, "--json"];
        await using local = startDarkbloom(["start", "--local", ...args]);
        const serving = await local.event("serving");
        const listening = await local.event("listening");
        const answer = await ask(String(listening["url"]), String(listening["api_key"]), "darkbloom-demo-q8_0");
        expect(answer).toMatchObject({ status: 200, done: true });

        expect(keysOf(listening)).toBe("event url api_key");
        expect(listening["url"]).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/);
        expect(listening["api_key"]).toMatch(/^dk-local-[A-Za-z0-9_-]{43}$/);
        expect(keysOf(serving)).toBe("event models provider_id trust_level");
        expect(storyOf(local)).toBe("hashing loading listening serving");
        await expectCleanEnd(local, signal);
        const left = ["file-hashes.json", "identity.key", "local.key", "state.json"];
        expect(readdirSync(dataDir).toSorted()).toEqual(left);
      },
      DEADLINE_MS,
    );

  test(
    "a port in use ends it with 1 before the model is loaded",
    async () => {
      const blocker: Server = createServer();
      const port = await new Promise<number>((resolve) =>
        blocker.listen(0, "127.0.0.1", () => resolve((blocker.address() as { port: number }).port)),
      );
      const args = ["--port", String(port), "--model", DEMO_MODEL, "--data-dir", join(dir.path, "blocked"), "--json"];
      const { code, lines } = await runDarkbloom(["start", "--local", ...args]);
      blocker.close();
      expect(code).toBe(1);
      expect(lines).toEqual([
        { event: "error", code: "address_in_use", message: expect.any(String), hint: expect.any(String) },
      ]);
      expect(String(lines[0]?.["message"])).toContain(String(port));
    },
    DEADLINE_MS,
  );
});

describe("accounts while the coordinator runs", () => {
  const statusOf = async (key: string): Promise<number> => {
    const response = await fetch(`${coordinator.url}/v1/models`, { headers: { authorization: `Bearer ${key}` } });
    await response.body?.cancel();
    return response.status;
  };

  test(
    "a key counts for the very next request, and a revoked one for none",
    async () => {
      const folder = ["--data-dir", coordinator.dataDir, "--json"];
      const { key, id } = await createKey(coordinator.dataDir);
      expect(await statusOf(key)).toBe(200);
      const listed = await runDarkbloom(["keys", "list", ...folder]);
      expect(listed.lines).toContainEqual(expect.objectContaining({ id, disabled: false }));
      expect((await runDarkbloom(["keys", "revoke", id, ...folder])).lines).toEqual([{ id, revoked: true }]);
      expect(await statusOf(key)).toBe(401);
    },
    DEADLINE_MS,
  );

  test(
    "a revoked join token lets nobody in",
    async () => {
      const { token, id } = await createJoinToken(coordinator.dataDir);
      /** 101, or the status of the refusal. */
      const upgrade = (): Promise<number> =>
        new Promise((resolve, reject) => {
          const headers = { authorization: `Bearer ${token}` };
          const socket = new WebSocket(coordinator.providerUrl, "darkbloom.v1", { headers });
          socket.on("open", () => {
            socket.terminate();
            resolve(101);
          });
          socket.on("unexpected-response", (_request, response) => resolve(response.statusCode ?? 0));
          socket.on("error", reject);
        });
      expect(await upgrade()).toBe(101);
      const args = ["join-token", "revoke", id, "--data-dir", coordinator.dataDir, "--json"];
      expect((await runDarkbloom(args)).lines).toEqual([{ id, revoked: true }]);
      expect(await upgrade()).toBe(401);
    },
    DEADLINE_MS,
  );
});

describe("an early signal", () => {
  test.each([50, 120, 200, 300])("%i ms after the start still ends with one last word", async (afterMs) => {
    const dataDir = join(dir.path, `early-${afterMs}`);
    const args = ["--port", "0", "--model", DEMO_MODEL, "--data-dir", dataDir];
    await using local = startDarkbloom(["start", "--local", "--json", ...args]);
    // The moment itself is what is tried.
    await Bun.sleep(afterMs);
    local.kill("SIGTERM");
    await local.exited;
    // Before the program has begun, the system's own end is all there is.
    if (local.lines.length > 0) expect(local.lines.at(-1)).toEqual({ event: "stopped" });
  });
});
