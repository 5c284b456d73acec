/** How long a connection may be silent, before and after its answer. */
import { expect, test } from "bun:test";
import { createKey } from "../../src/coordinator/accounts/keys.ts";
import { DrainGate } from "../../src/coordinator/drain-gate.ts";
import { answer } from "../../src/coordinator/http/answer.ts";
import type { HttpDeps } from "../../src/coordinator/http/route.ts";
import { COORDINATOR_DEFAULTS } from "../support/coordinator-defaults.ts";
import { openStore } from "../../src/coordinator/store/open-store.ts";
import { systemClock } from "../../src/core/clock.ts";
import { createIds, systemRandom } from "../../src/core/ids.ts";
import { createLog } from "../../src/core/log.ts";
import { tempDir } from "../support/temp-dir.ts";

/** The limits an answer sets on its connection, in seconds. */
const limitsOf = async (path: string, init: RequestInit, withKey: boolean): Promise<[number, number[]]> => {
  await using dir = await tempDir();
  const clock = systemClock();
  using store = openStore({ clock }, `${dir.path}/coordinator.db`);
  const ids = createIds(systemRandom());
  const { key } = createKey({ clock, ids, store }, { name: "test" });
  const log = createLog({ clock, level: "error", format: "json", write: () => undefined });
  // Neither request gets as far as a provider.
  const dispatch = {} as HttpDeps["dispatch"];
  const gate = new DrainGate();
  const deps: HttpDeps = { clock, ids, log, store, gate, options: COORDINATOR_DEFAULTS, dispatch, version: "1" };
  const limits: number[] = [];
  const headers = withKey ? { authorization: `Bearer ${key}` } : {};
  const request = new Request(`http://localhost${path}`, { ...init, headers });
  const connection = { ip: "127.0.0.1", limitSilence: (sec: number) => void limits.push(sec) };
  const response = await answer(deps, request, connection, () => undefined);
  return [response?.status ?? 0, limits];
};

test("a body has its own deadline, and the limit comes back with the end of the answer", async () => {
  const [status, limits] = await limitsOf("/v1/chat/completions", { method: "POST", body: "{" }, true);
  expect(status).toBe(400);
  expect(limits).toEqual([0, 60]);
});

test("who has no key never gets rid of the limit", async () => {
  const [status, limits] = await limitsOf("/v1/chat/completions", { method: "POST", body: "{" }, false);
  expect(status).toBe(401);
  expect(limits).not.toContain(0);
});

test("a page that reads no body leaves a limit, too", async () => {
  const [status, limits] = await limitsOf("/readyz", {}, false);
  expect(status).toBe(200);
  expect(limits).not.toContain(0);
});
