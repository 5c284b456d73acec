/** A consumer who goes away at the very moment its request is sent. */
import { expect, test } from "bun:test";
import { ConnectedProvider } from "../../src/coordinator/routing/connected-provider.ts";
import { dispatch } from "../../src/coordinator/routing/dispatch.ts";
import { zeroTiming, type Job } from "../../src/coordinator/routing/job.ts";
import { pickLeastLoaded } from "../../src/coordinator/routing/pick.ts";
import { ProviderRegistry } from "../../src/coordinator/routing/registry.ts";
import { WaitingRoom } from "../../src/coordinator/routing/waiting-room.ts";
import { systemClock } from "../../src/core/clock.ts";
import { createIds, systemRandom } from "../../src/core/ids.ts";
import { createLog } from "../../src/core/log.ts";
import { ProviderKeys } from "../../src/trust/seal.ts";
import { COORDINATOR_DEFAULTS } from "../support/coordinator-defaults.ts";
import { rejectionOf } from "../support/rejection.ts";
import { scriptedModel } from "../support/scripted-provider.ts";

test("the provider is told at once", async () => {
  const clock = systemClock();
  const random = systemRandom();
  const keys = await ProviderKeys.create({ clock, random });
  const consumer = new AbortController();
  const cancelled: string[] = [];
  const provider = new ConnectedProvider({
    identity: {
      id: "prov_1",
      connectionId: "c",
      identityKey: "k",
      version: "1",
      chip: "chip",
      machineModel: "machine",
    },
    models: new Map([["m", scriptedModel("m")]]),
    standing: { trustLevel: "self_signed", kPublic: keys.publicKey, verifiedAtMs: clock.monotonicMs() },
    link: {
      submit: () => queueMicrotask(() => consumer.abort()),
      cancel: (id) => void cancelled.push(id),
      onAttemptEnd: () => undefined,
    },
  });
  provider.serving = true;
  const room = new WaitingRoom(clock);
  const registry = new ProviderRegistry(room);
  registry.add(provider);
  const job: Job = {
    id: "job",
    request: { model: "m", messages: [{ role: "user", content: "Hi" }], stream: true },
    modelId: "m",
    promptTokens: 5,
    startedMs: clock.monotonicMs(),
    timing: zeroTiming(),
    abandon: () => undefined,
    provider: null,
    attempts: 0,
  };
  const log = createLog({ clock, level: "error", format: "json", write: () => undefined });
  const deps = { clock, ids: createIds(random), random, log, registry, room, options: COORDINATOR_DEFAULTS };
  const outputs = dispatch({ ...deps, pick: pickLeastLoaded }, job, consumer.signal)[Symbol.asyncIterator]();
  expect(await rejectionOf(outputs.next())).toMatchObject({ code: "cancelled" });
  expect(cancelled.length).toBe(1);
  expect(provider.attempts.size).toBe(0);
  expect(provider.inFlight).toBe(0);
});
