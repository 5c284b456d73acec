/** Between the choice of a provider and its request on the wire lies the agreement of keys: what happens meanwhile counts. */
import { expect, test } from "bun:test";
import { ConnectedProvider, type InferenceRequest } from "../../src/coordinator/routing/connected-provider.ts";
import { zeroTiming, type Job } from "../../src/coordinator/routing/job.ts";
import { createSubmission } from "../../src/coordinator/routing/submit.ts";
import { systemClock } from "../../src/core/clock.ts";
import { Fault } from "../../src/core/fault.ts";
import { createIds, systemRandom } from "../../src/core/ids.ts";
import { ProviderKeys } from "../../src/trust/seal.ts";
import { rejectionOf } from "../support/rejection.ts";

const clock = systemClock();
const random = systemRandom();

const job = (): Job => ({
  id: "job",
  request: { model: "m", messages: [{ role: "user", content: "Hi" }], stream: false },
  modelId: "m",
  promptTokens: 5,
  startedMs: clock.monotonicMs(),
  timing: zeroTiming(),
  abandon: () => undefined,
  provider: null,
  attempts: 1,
});

const setUp = async () => {
  const keys = await ProviderKeys.create({ clock, random });
  const sent: InferenceRequest[] = [];
  const provider = new ConnectedProvider({
    identity: {
      id: "prov_1",
      connectionId: "c",
      identityKey: "k",
      version: "1",
      chip: "chip",
      machineModel: "machine",
    },
    models: new Map(),
    standing: { trustLevel: "self_signed", kPublic: keys.publicKey, verifiedAtMs: clock.monotonicMs() },
    link: { submit: (request) => void sent.push(request), cancel: () => undefined, onAttemptEnd: () => undefined },
  });
  provider.serving = true;
  const registry = { changed: () => undefined };
  const submission = createSubmission(
    { clock, ids: createIds(random), registry, options: { silenceMs: 1_000 } },
    job(),
  );
  const send = (signal: AbortSignal) =>
    submission.send(provider, {
      deadlineMs: clock.monotonicMs() + 1_000,
      budgetMs: 1_000,
      signal,
      onEnd: () => undefined,
    });
  return { provider, sent, send };
};

test("a request goes out to a provider that serves", async () => {
  const { provider, sent, send } = await setUp();
  const attempt = await send(new AbortController().signal);
  expect(sent.map(({ request_id }) => request_id)).toEqual([attempt.id]);
  expect(provider.attempts.size).toBe(1);
  attempt.cancel(new Fault("cancelled", "over"));
});

test("a provider that drains or is found untrusted meanwhile gets nothing", async () => {
  const { provider, sent, send } = await setUp();
  const sending = send(new AbortController().signal);
  provider.serving = false;
  expect(await rejectionOf(sending)).toMatchObject({ code: "draining" });
  expect(sent).toEqual([]);
  expect(provider.attempts.size).toBe(0);
});

test("nothing goes out for a consumer who went away meanwhile", async () => {
  const { provider, sent, send } = await setUp();
  const consumer = new AbortController();
  const sending = send(consumer.signal);
  consumer.abort();
  expect(await rejectionOf(sending)).toMatchObject({ code: "cancelled" });
  expect(sent).toEqual([]);
  expect(provider.attempts.size).toBe(0);
});
