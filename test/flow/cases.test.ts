/** Every evaluation case of the demo model, answered greedily through the whole path: coordinator, sealed socket, real engine. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { openDemoEngine } from "../support/demo-engine.ts";
import { NATIVE_DEADLINE_MS } from "../support/demo-model.ts";
import { EVAL_TOKENS_MAX, isRight, loadEvalCases, type EvalAnswer, type EvalCase } from "../support/eval-cases.ts";
import { postChat, startNetwork, type Network } from "../support/network.ts";
import { sseData } from "../support/script-stream.ts";

setDefaultTimeout(60_000);

/** More than the engine has rows: some cases wait at the coordinator for theirs. */
const LANES = 6;

let network: Network;
beforeAll(async () => {
  network = await startNetwork({ engines: [await openDemoEngine({ contextTokens: 2048, rows: 4 })] });
}, NATIVE_DEADLINE_MS);
afterAll(() => network[Symbol.asyncDispose]());

interface Call {
  readonly index?: number;
  readonly function?: { readonly name?: string; readonly arguments?: string };
}
interface Said {
  readonly content?: string | null;
  readonly tool_calls?: readonly Call[];
}
interface Choice {
  readonly message?: Said;
  readonly delta?: Said;
  readonly finish_reason: string | null;
}

/** Adds a whole message, or one piece of it, to what was said so far. */
const addTo = (answer: { text: string; toolCalls: { name: string; arguments: string }[] }, said: Said): void => {
  answer.text += said.content ?? "";
  for (const [at, call] of (said.tool_calls ?? []).entries()) {
    const known = (answer.toolCalls[call.index ?? at] ??= { name: "", arguments: "" });
    known.name += call.function?.name ?? "";
    known.arguments += call.function?.arguments ?? "";
  }
};

const answerOf = async (it: EvalCase, stream: boolean): Promise<EvalAnswer & { finish: string | null }> => {
  const response = await postChat(network, {
    messages: it.messages,
    ...(it.tools.length === 0 ? {} : { tools: it.tools }),
    temperature: 0,
    max_tokens: EVAL_TOKENS_MAX,
    stream,
  });
  if (response.status !== 200) throw new Error(`${it.id}: HTTP ${response.status}`);
  const answer = { text: "", toolCalls: [] as { name: string; arguments: string }[], finish: null as string | null };
  const pieces = stream ? sseData(await response.text()) : [await response.json()];
  for (const piece of pieces) {
    if (piece === "[DONE]") continue;
    const [choice] = (piece as { readonly choices: readonly Choice[] }).choices;
    addTo(answer, choice?.message ?? choice?.delta ?? {});
    answer.finish = choice?.finish_reason ?? answer.finish;
  }
  return answer;
};

test.each([false, true])(`all cases are answered rightly, ${LANES} at a time, streamed: %p`, async (stream) => {
  const cases = await loadEvalCases();
  expect(cases.length).toBe(109);
  const wrong: string[] = [];
  const left = [...cases];
  const lane = async (): Promise<void> => {
    for (let it = left.shift(); it !== undefined; it = left.shift()) {
      const answer = await answerOf(it, stream);
      const ended = answer.finish === (it.check === "tool_call" ? "tool_calls" : "stop");
      if (!ended || !isRight(it, answer)) wrong.push(it.id);
    }
  };
  await Promise.all(Array.from({ length: LANES }, lane));
  expect(wrong).toEqual([]);
});
