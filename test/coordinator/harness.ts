/** A coordinator on a free port with its own empty database, and the keys to use it. */
import { createIds, systemRandom } from "../../src/core/ids.ts";
import { systemClock, type Clock } from "../../src/core/clock.ts";
import { createLog } from "../../src/core/log.ts";
import { createJoinToken } from "../../src/coordinator/accounts/join-tokens.ts";
import { createKey } from "../../src/coordinator/accounts/keys.ts";
import { startCoordinator, type Coordinator } from "../../src/coordinator/coordinator.ts";
import type { CoordinatorOptions } from "../../src/coordinator/options.ts";
import { openStore } from "../../src/coordinator/store/open-store.ts";
import type { Store } from "../../src/coordinator/store/store.ts";
import { openSoftwareSigner } from "../../src/trust/signer.ts";
import { COORDINATOR_DEFAULTS } from "../support/coordinator-defaults.ts";
import { ScriptedProvider, type ScriptedOptions } from "../support/scripted-provider.ts";
import { tempDir } from "../support/temp-dir.ts";
import { waitFor } from "../support/wait.ts";

export interface Harness extends AsyncDisposable {
  readonly coordinator: Coordinator;
  readonly store: Store;
  readonly key: string;
  readonly keyId: string;
  readonly token: string;
  readonly dataDir: string;
  readonly lines: string[];
  provider(options?: Partial<ScriptedOptions>): Promise<ScriptedProvider>;
  /** POST /v1/chat/completions */
  chat(body?: Record<string, unknown>, init?: BunFetchRequestInit): Promise<Response>;
  get(path: string, init?: BunFetchRequestInit): Promise<Response>;
}

export const CHAT = { model: "test-model", messages: [{ role: "user", content: "Hi" }] };

export const startHarness = async (
  options: Partial<CoordinatorOptions> = {},
  overrides: { readonly clock?: Clock } = {},
): Promise<Harness> => {
  const dir = await tempDir();
  const clock = overrides.clock ?? systemClock();
  const random = systemRandom();
  const ids = createIds(random);
  const lines: string[] = [];
  const log = createLog({ clock, level: "debug", format: "json", write: (line) => lines.push(line) });
  const store = openStore({ clock }, `${dir.path}/coordinator.db`);
  const signer = await openSoftwareSigner(`${dir.path}/identity.key`);
  const { key, id: keyId } = createKey({ clock, ids, store }, { name: "test" });
  const { token } = createJoinToken({ clock, ids, store }, {}, {});
  const coordinator = await startCoordinator(
    { clock, random, ids, log, store, signer, version: "0.0.0-test" },
    { ...COORDINATOR_DEFAULTS, port: 0, ...options },
  );
  const providers: ScriptedProvider[] = [];
  return {
    coordinator,
    store,
    key,
    keyId,
    token,
    dataDir: dir.path,
    lines,
    provider: async (changes = {}) => {
      const provider = await ScriptedProvider.start({ url: coordinator.providerUrl, token, ...changes });
      providers.push(provider);
      return provider;
    },
    chat: (body = {}, init = {}) =>
      fetch(`${coordinator.url}/v1/chat/completions`, {
        method: "POST",
        headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
        body: JSON.stringify({ ...CHAT, ...body }),
        ...init,
      }),
    get: (path, init = {}) =>
      fetch(`${coordinator.url}${path}`, { headers: { authorization: `Bearer ${key}` }, ...init }),
    async [Symbol.asyncDispose]() {
      for (const provider of providers) await provider[Symbol.asyncDispose]();
      await coordinator.stop();
      await dir[Symbol.asyncDispose]();
    },
  };
};

/** The events of a whole SSE body: parsed data, `[DONE]` as text, comments under `comments`. */
export const readSse = async (response: Response): Promise<{ data: unknown[]; comments: string[] }> =>
  parseSse(await response.text());

export const parseSse = (text: string): { data: unknown[]; comments: string[] } => {
  const data: unknown[] = [];
  const comments: string[] = [];
  for (const block of text.split("\n\n")) {
    if (block.startsWith(":")) comments.push(block.slice(1).trim());
    else if (block.startsWith("data: ")) data.push(block === "data: [DONE]" ? "[DONE]" : JSON.parse(block.slice(6)));
  }
  return { data, comments };
};

interface Chunk {
  readonly choices?: readonly { readonly delta?: { readonly content?: string | null } }[];
}

/** What the chunks say, joined. */
export const contentOf = (data: readonly unknown[]): string =>
  data.map((item) => (item as Chunk).choices?.[0]?.delta?.content ?? "").join("");

export interface ErrorBody {
  readonly error: {
    readonly type: string;
    readonly message: string;
    readonly code: string;
    readonly param: string | null;
  };
}

export const errorOf = async (response: Response): Promise<ErrorBody["error"]> =>
  ((await response.json()) as ErrorBody).error;

/** Lets a test wait for log lines by event name. */
export const waitForLine = (harness: Harness, event: string) =>
  waitFor(`log line ${event}`, () => harness.lines.find((line) => line.includes(`"event":"${event}"`)));
