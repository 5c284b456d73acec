/** Prompts and completions are found nowhere: not in logs, store files, state files, caches or error output, whatever happens to a request. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdir, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { createLog } from "../../src/core/log.ts";
import { writeLocalRecord } from "../../src/provider/local/local-record.ts";
import { filesBelow, findLeaks, writtenForms, type Leak, type Place } from "../support/canary.ts";
import { streamChat, type StreamResult } from "../support/chat-stream.ts";
import {
  runDarkbloom,
  startDarkbloom,
  type DarkbloomProcess,
  type ProcessOptions,
} from "../support/darkbloom-process.ts";
import { testCacheDir } from "../support/native.ts";
import {
  createJoinToken,
  createKey,
  DEMO_MODEL,
  LONG_CONTEXT,
  longStream,
  MODEL_ID,
  serveCoordinator,
  startProviderProcess,
  warmUpNative,
} from "../support/process-network.ts";
import { providerPidOf } from "../support/process-tree.ts";
import { tempDir, type TempDir } from "../support/temp-dir.ts";
import { waitFor } from "../support/wait.ts";

const DEADLINE_MS = 110_000;
/** In prompts only. */
const PROMPT = `canary${crypto.randomUUID().replaceAll("-", "")}`;
/** In a prompt, and because the model repeats lists, in its answer too. */
const ECHO = "zivokatu";

let dir: TempDir;
beforeAll(async () => {
  await warmUpNative();
  dir = await tempDir();
}, 600_000);
afterAll(() => dir[Symbol.asyncDispose]());

/** One world: all its processes write into one folder (home, temporary files, working folder, state) and talk to us. */
class Scene {
  readonly root: string;
  readonly outputs: Place[] = [];
  readonly #sinceMs = Date.now() - 1_000;
  readonly #processes: [name: string, DarkbloomProcess][] = [];

  constructor(root: string) {
    this.root = root;
  }

  static async open(name: string): Promise<Scene> {
    const root = join(dir.path, name);
    for (const folder of ["home", "tmp", "cwd"]) await mkdir(join(root, folder), { recursive: true });
    return new Scene(root);
  }

  folder(name: string): string {
    return join(this.root, name);
  }

  get options(): ProcessOptions {
    const [HOME, TMPDIR] = [this.folder("home"), this.folder("tmp")];
    const XDG_CACHE_HOME = join(testCacheDir(), "..");
    const env = { HOME, TMPDIR, XDG_CACHE_HOME, DARKBLOOM_LOG_LEVEL: "debug" };
    return { env, cwd: this.folder("cwd") };
  }

  watch<T extends DarkbloomProcess>(name: string, process: T): T {
    this.#processes.push([name, process]);
    return process;
  }

  /** Everything there is to look at now. */
  places(): readonly Place[] {
    const spoken = this.#processes.flatMap(([name, process]) => [
      { name: `stdout of ${name}`, content: Buffer.from(process.stdout()) },
      { name: `stderr of ${name}`, content: Buffer.from(process.stderr()) },
    ]);
    return [...spoken, ...this.outputs, ...filesBelow(this.root), ...filesBelow(testCacheDir(), this.#sinceMs)];
  }

  leaks(texts: readonly string[]): readonly Leak[] {
    return findLeaks(this.places(), texts);
  }
}

const placesOf = (leaks: readonly Leak[]): readonly string[] =>
  [...new Set(leaks.map(({ place }) => basename(place)))].toSorted();

describe("the scan sees a leak", () => {
  test("in every form", () => {
    for (const [form, text] of Object.entries(writtenForms(PROMPT))) {
      const leaks = findLeaks([{ name: "planted", content: Buffer.from(text) }], [PROMPT]);
      expect(leaks).toEqual([{ place: "planted", form }]);
    }
    const similar = PROMPT.replace(/.$/, "~");
    for (const text of Object.values(writtenForms(similar)))
      expect(findLeaks([{ name: "planted", content: Buffer.from(text) }], [PROMPT])).toEqual([]);
  });

  test(
    "in output, logs, database and state files of programs that were made to leak",
    async () => {
      const scene = await Scene.open("planted");
      const { options } = scene;
      const dataDir = scene.folder("coordinator");
      await using coordinator = await serveCoordinator({ ...options, dataDir });
      scene.watch("coordinator", coordinator.process);
      const named = await runDarkbloom(["keys", "create", "--name", PROMPT, "--data-dir", dataDir], options);
      expect(named.code).toBe(0);
      expect(placesOf(scene.leaks([PROMPT]))).toContain("coordinator.db-wal");

      // A model's id is no prompt and is written wherever the program says what it serves.
      const { token } = await createJoinToken(dataDir);
      const where = { dataDir: scene.folder("provider"), coordinatorUrl: coordinator.url, token };
      const args = ["--id", `id-${PROMPT}`];
      await using provider = startProviderProcess({ ...options, ...where, args });
      scene.watch("provider", provider);
      await provider.event("serving");
      const written = ["coordinator.db-wal", "state.json"];
      const said = ["stderr of coordinator", "stderr of provider", "stdout of provider"];
      expect(placesOf(scene.leaks([PROMPT]))).toEqual([...written, ...said]);

      await provider[Symbol.asyncDispose]();
      await coordinator[Symbol.asyncDispose]();
      expect(placesOf(scene.leaks([PROMPT]))).toContain("coordinator.db");
    },
    DEADLINE_MS,
  );

  test(
    "in error output, in a log line with a wrong field, and in any file that should not be there",
    async () => {
      const scene = await Scene.open("planted-files");
      for (const json of [[], ["--json"]]) {
        const failed = scene.watch(`failure${json.join("")}`, startDarkbloom([PROMPT.slice(0, 30), ...json]));
        expect(await failed.exited).toBe(64);
      }
      for (const format of ["json", "text"] as const) {
        const write = (line: string): unknown =>
          scene.outputs.push({ name: `${format} log`, content: Buffer.from(line) });
        const log = createLog({ clock: { nowMs: () => 0 }, level: "debug", format, write });
        log.debug("request_seen", { prompt: `It begins: ${PROMPT}` });
      }
      await mkdir(scene.folder("state"));
      const record = { base_url: "", api_key: PROMPT, host: "", port: 1, pid: 1, version: "" };
      writeLocalRecord(scene.folder("state"), { ...record, updated_at: new Date(0).toISOString() });
      await writeFile(scene.folder("tmp/left-over"), Buffer.from(PROMPT, "utf16le"));
      await writeFile(scene.folder("cwd/core.1"), Buffer.concat([Buffer.alloc(1_000_000), Buffer.from(PROMPT)]));
      await writeFile(scene.folder(`home/${PROMPT}`), "");
      const cached = join(testCacheDir(), `planted-${process.pid}`);
      await writeFile(cached, Buffer.from(PROMPT).toString("hex"));
      try {
        const output = ["json log", "text log", "stderr of failure", "stdout of failure--json"];
        const files = ["local.json", "left-over", "core.1", PROMPT, basename(cached)];
        expect(placesOf(scene.leaks([PROMPT.slice(0, 30)]))).toEqual([...output, ...files].toSorted());
      } finally {
        await rm(cached);
      }
    },
    DEADLINE_MS,
  );
});

interface Api {
  readonly baseUrl: string;
  readonly key: string;
}

/** A model whose template throws the whole content of a tool's message, as a careless template may. */
const makeRaisingModel = async (path: string): Promise<string> => {
  const model = Buffer.from(await Bun.file(DEMO_MODEL).arrayBuffer());
  const known = String.raw`{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}`;
  const at = model.indexOf(known);
  expect(at).toBeGreaterThan(0);
  const raising = "{{- raise_exception(message.content) }}";
  model.write(`${raising.slice(0, -2)}${" ".repeat(known.length - raising.length)}}}`, at);
  await writeFile(path, model);
  return path;
};

const user = (content: string): readonly object[] => [{ role: "user", content }];
const WEATHER = {
  type: "function",
  function: {
    name: "get_weather",
    description: `Get the weather in a city. ${PROMPT}`,
    parameters: { type: "object", properties: { city: { type: "string", description: PROMPT } } },
  },
};

/** Requests that succeed and carry a canary in every place that can hold text. */
const askWell = async (api: Api): Promise<void> => {
  const ask = (body: object): Promise<StreamResult> =>
    streamChat({ ...api, body: { model: MODEL_ID, temperature: 0, max_tokens: 60, ...body } });
  const echoed = await ask({ messages: user(`Repeat this list: ${ECHO}, apple`) });
  expect(echoed).toMatchObject({ status: 200, done: true, text: `${ECHO}, apple` });
  const whole = await fetch(`${api.baseUrl}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${api.key}`, "content-type": "application/json" },
    body: JSON.stringify({ model: MODEL_ID, temperature: 0, messages: user(`Repeat this list: ${ECHO}, apple`) }),
  });
  expect(await whole.text()).toContain(ECHO);
  const call = {
    id: `call_${PROMPT}`,
    type: "function",
    function: { name: "get_weather", arguments: `{"city":"${PROMPT}"}` },
  };
  const messages = [
    { role: "system", content: `Be brief. ${PROMPT}`, name: PROMPT },
    ...user(`What is the weather in ${ECHO}? ${PROMPT}`),
    { role: "assistant", content: null, tool_calls: [call] },
    { role: "tool", tool_call_id: `call_${PROMPT}`, content: PROMPT },
    ...user(`What is the weather in ${ECHO}?`),
  ];
  const extras = { tools: [WEATHER], stop: [PROMPT], user: PROMPT, metadata: { note: PROMPT } };
  expect(await ask({ messages, ...extras })).toMatchObject({ status: 200, done: true });
};

/** Requests that are refused, each with the canary where a parser or a check would like to quote it. */
const REFUSED: Readonly<Record<string, { readonly status: number; readonly body: string | object }>> = {
  "JSON cut short": { status: 400, body: `{"model":"${MODEL_ID}","messages":[{"role":"user","content":"${PROMPT}` },
  "text after JSON": { status: 400, body: `{"model":"${MODEL_ID}"} ${PROMPT}` },
  "no JSON": { status: 400, body: PROMPT },
  "messages that are text": { status: 400, body: { messages: PROMPT } },
  "a role that is none": { status: 400, body: { messages: [{ role: PROMPT, content: "x" }] } },
  "content of a wrong shape": { status: 400, body: { messages: [{ role: "user", content: { [PROMPT]: PROMPT } }] } },
  "a part of a wrong type": { status: 400, body: { messages: [{ role: "user", content: [{ type: PROMPT }] }] } },
  "a number that is text": { status: 400, body: { messages: user(PROMPT), temperature: PROMPT } },
  "a choice that is none": { status: 400, body: { messages: user(PROMPT), tool_choice: PROMPT } },
  "a tool without a name": { status: 400, body: { messages: user(PROMPT), tools: [{ type: PROMPT, [PROMPT]: {} }] } },
  "more than one answer": { status: 400, body: { messages: user(PROMPT), n: 2 } },
  "an unknown model": { status: 404, body: { model: "nobody-serves-this", messages: user(PROMPT) } },
  "more than fits the context": { status: 400, body: { messages: user(`${PROMPT} `.repeat(4_000)) } },
  "more than fits a body": { status: 413, body: { messages: user(`${PROMPT} `.repeat(450_000)) } },
};

const send = (api: Api, body: string | object): Promise<Response> =>
  fetch(`${api.baseUrl}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${api.key}`, "content-type": "application/json" },
    body: typeof body === "string" ? body : JSON.stringify({ model: MODEL_ID, ...body }),
  });

const askBadly = async (scene: Scene, api: Api): Promise<void> => {
  const seen: Record<string, number> = {};
  for (const [name, { body }] of Object.entries(REFUSED)) {
    const response = await send(api, body);
    seen[name] = response.status;
    scene.outputs.push({ name: `answer to ${name}`, content: Buffer.from(await response.text()) });
  }
  expect(seen).toEqual(Object.fromEntries(Object.entries(REFUSED).map(([name, { status }]) => [name, status])));
  const stranger = await send({ ...api, key: "sk-db-nobody" }, { messages: user(PROMPT) });
  expect(stranger.status).toBe(401);
};

/** A stream whose prompt carries the canary and whose answer begins with the echo. */
const longEcho = (api: Api, signal?: AbortSignal) => {
  const messages = [{ role: "system", content: PROMPT }, ...user(`Repeat this list: ${ECHO}, apple`)];
  const body = { model: MODEL_ID, temperature: 0, messages };
  return longStream({ ...api, body, ...(signal === undefined ? {} : { signal }) });
};

const abortMidway = async (api: Api): Promise<void> => {
  const controller = new AbortController();
  const stream = longEcho(api, controller.signal);
  await stream.started;
  controller.abort();
  expect(await stream.result.catch(() => "aborted")).toBe("aborted");
};

/** Ends the provider's child in mid-stream. */
const crashMidway = async (api: Api, dataDir: string, signal: NodeJS.Signals): Promise<void> => {
  const stream = longEcho(api);
  const end = stream.result.then(
    ({ done }) => done,
    () => false,
  );
  await stream.started;
  process.kill(providerPidOf(dataDir) ?? 0, signal);
  expect(await end).toBe(false);
};

const lineCount = (process: DarkbloomProcess): number => process.stderr().split("\n").length;

describe("prompts and completions are nowhere", () => {
  test(
    "with coordinator and provider: success, refusal, template error, cancel, crash of either",
    async () => {
      const scene = await Scene.open("network");
      const { options } = scene;
      const dataDir = scene.folder("coordinator");
      await using coordinator = await serveCoordinator({ ...options, dataDir });
      const control = scene.watch("coordinator", coordinator.process);
      const api = { baseUrl: coordinator.url, key: (await createKey(dataDir)).key };
      const { token } = await createJoinToken(dataDir);
      const where = { coordinatorUrl: coordinator.url, token };
      const providerDir = scene.folder("provider");
      await using provider = startProviderProcess({ ...options, ...where, dataDir: providerDir, args: LONG_CONTEXT });
      scene.watch("provider", provider);
      const model = await makeRaisingModel(scene.folder("raising.gguf"));
      const raisingArgs = ["--data-dir", scene.folder("raising"), "--model", model, "--id", "raising", "--json"];
      const join = ["--coordinator-url", coordinator.url, "--join", token];
      await using raising = startDarkbloom(["start", ...join, ...raisingArgs], options);
      scene.watch("raising", raising);
      await Promise.all([provider.event("serving"), raising.event("serving")]);

      await askWell(api);
      await askBadly(scene, api);
      const tool = [...user(PROMPT), { role: "tool", tool_call_id: "a", content: PROMPT }];
      const refused = await send(api, { model: "raising", messages: tool });
      expect(refused.status).toBe(422);
      scene.outputs.push({ name: "template error", content: Buffer.from(await refused.text()) });
      expect(scene.leaks([PROMPT, ECHO])).toEqual([]);

      const before = lineCount(control) + lineCount(provider);
      await abortMidway(api);
      await waitFor("the cancel to be seen", () => provider.stderr().includes('"outcome":"cancelled"'));
      await waitFor("the cancel to be told", () => control.stderr().includes('"outcome":"cancelled"'));
      // A program that logged its chunks would leak in pieces too small to be found.
      expect(lineCount(control) + lineCount(provider) - before).toBeLessThan(20);

      await crashMidway(api, providerDir, "SIGKILL");
      await provider.events("serving", 2);
      await crashMidway(api, providerDir, "SIGSEGV");
      expect(await provider.exited).toBe(1);
      expect(scene.leaks([PROMPT, ECHO])).toEqual([]);

      const elsewhere = { dataDir: scene.folder("provider-2"), args: LONG_CONTEXT };
      await using again = startProviderProcess({ ...options, ...where, ...elsewhere });
      scene.watch("provider 2", again);
      await again.event("serving");
      const stream = longEcho(api);
      const end = stream.result.catch(() => null);
      await stream.started;
      control.kill("SIGKILL");
      await control.exited;
      expect((await end)?.done).not.toBe(true);
      again.kill("SIGINT");
      raising.kill("SIGINT");
      expect(await Promise.all([again.exited, raising.exited])).toEqual([0, 0]);

      const names = scene.places().map(({ name }) => basename(name));
      for (const name of ["coordinator.db", "coordinator.db-wal", "state.json", "identity.key", "crashes.json"])
        expect(names).toContain(name);
      for (const process of [control, provider, raising, again]) expect(process.stderr()).not.toBe("");
      expect(scene.leaks([PROMPT, ECHO])).toEqual([]);
    },
    DEADLINE_MS,
  );

  test(
    "with start --local: success, refusal, template error, cancel, crash",
    async () => {
      const scene = await Scene.open("local");
      const { options } = scene;
      const model = await makeRaisingModel(scene.folder("raising.gguf"));
      const dataDir = scene.folder("provider");
      const args = ["--port", "0", "--model", model, "--id", MODEL_ID, "--data-dir", dataDir, "--parallel", "1"];
      await using local = startDarkbloom(["start", "--local", "--json", ...args, ...LONG_CONTEXT], options);
      scene.watch("local", local);
      await local.event("serving");
      const listening = await local.event("listening");
      const api = { baseUrl: String(listening["url"]), key: String(listening["api_key"]) };

      const echoed = await send(api, { temperature: 0, messages: user(`Repeat this list: ${ECHO}, apple`) });
      expect(await echoed.text()).toContain(ECHO);
      await askBadly(scene, api);
      const tool = [...user(PROMPT), { role: "tool", tool_call_id: "a", content: PROMPT }];
      const refused = await send(api, { messages: tool });
      expect(refused.status).toBe(422);
      scene.outputs.push({ name: "template error", content: Buffer.from(await refused.text()) });
      const before = lineCount(local);
      await abortMidway(api);
      // There is one row, so another answer proves that the cancelled one has left it.
      const next = { max_tokens: 5, messages: user(PROMPT) };
      await waitFor("the row to be free again", async () => {
        const response = await send(api, next);
        await response.body?.cancel();
        return response.status === 200;
      });
      expect(lineCount(local) - before).toBeLessThan(20);
      expect(scene.leaks([PROMPT, ECHO])).toEqual([]);

      await crashMidway(api, dataDir, "SIGABRT");
      await local.events("serving", 2);
      local.kill("SIGINT");
      expect(await local.exited).toBe(0);
      const names = scene.places().map(({ name }) => basename(name));
      for (const name of ["local.key", "state.json", "identity.key", "crashes.json"]) expect(names).toContain(name);
      expect(scene.leaks([PROMPT, ECHO])).toEqual([]);
    },
    DEADLINE_MS,
  );
});
