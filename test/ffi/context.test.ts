/** Contexts on the real library: rows side by side, shared sequences, aborts, order of disposal, and refused misuse. */
import { beforeAll, describe, expect, test } from "bun:test";
import { Batch, StepRows } from "../../ffi/batch.ts";
import { ChatTemplates } from "../../ffi/chat.ts";
import { Context } from "../../ffi/context.ts";
import { Model } from "../../ffi/model.ts";
import type { Native } from "../../ffi/native.ts";
import { SamplerChain } from "../../ffi/sampler.ts";
import {
  addPrompt,
  contextOptions,
  demoNative,
  generate,
  GREEDY,
  NATIVE_DEADLINE_MS,
  readEvalCases,
  toText,
} from "../support/demo-model.ts";
import { Fault } from "../../src/core/fault.ts";
import { faultOf } from "../support/fault-of.ts";
import { DEMO_MODEL } from "../support/native.ts";

let native: Native;
let model: Model;
let chat: ChatTemplates;
beforeAll(async () => {
  native = await demoNative();
  model = Model.open(native, DEMO_MODEL);
  chat = ChatTemplates.open(model);
}, NATIVE_DEADLINE_MS);

const promptOf = (messages: readonly unknown[], tools: readonly unknown[] = []): Int32Array =>
  model.tokenize(chat.apply({ messages, tools }).prompt, { special: true });
const ask = (content: string): Int32Array => promptOf([{ role: "user", content }]);

/** Lets all prompts decode side by side, one sequence each. */
const generateTogether = (prompts: readonly Int32Array[]): number[][] => {
  const sequences = prompts.length;
  using context = Context.open(model, contextOptions({ contextTokens: 4096, batchTokens: 2048, sequences }));
  const samplers = prompts.map(() => SamplerChain.open(model, GREEDY));
  const batch = new Batch(context.batchTokens);
  const rows = new StepRows(sequences);
  const out = new Int32Array(sequences);
  const answers: number[][] = prompts.map(() => []);
  let running = prompts.map((_, index) => index);
  for (const index of running) rows.add(addPrompt(batch, prompts[index]!, index), samplers[index]!);
  while (running.length > 0) {
    context.step(batch, rows, out);
    const tokens = running.map((index, row) => [index, out[row]!] as const);
    batch.clear();
    rows.clear();
    running = [];
    for (const [index, token] of tokens) {
      if (model.isEog(token)) continue;
      const position = prompts[index]!.length + answers[index]!.push(token) - 1;
      rows.add(batch.add(token, position, index, true), samplers[index]!);
      running.push(index);
    }
  }
  for (const sampler of samplers) sampler[Symbol.dispose]();
  return answers;
};

describe("step", () => {
  test("answers greedily", () => {
    expect(toText(model, generate(model, ask("What is the capital of France?")))).toBe(
      "The capital of France is Paris.",
    );
  });

  test("eight sequences in one batch answer as each does alone", async () => {
    const cases = (await readEvalCases()).filter((_, index) => index % 13 === 0).slice(0, 8);
    expect(cases.length).toBe(8);
    const prompts = cases.map((it) => promptOf(it.messages, it.tools));
    const alone = prompts.map((prompt) => generate(model, prompt));
    expect(generateTogether(prompts)).toEqual(alone);
  });

  test("a prompt in several steps answers as one in a single step", () => {
    const prompt = ask("Tell me a story about a fox.");
    using context = Context.open(model, contextOptions());
    using sampler = SamplerChain.open(model, GREEDY);
    const batch = new Batch(512);
    const rows = new StepRows(1);
    const out = new Int32Array(1);
    const tokens: number[] = [];
    const chunk = 5;
    for (let begin = 0; begin < prompt.length; begin += chunk) {
      batch.clear();
      const part = prompt.subarray(begin, begin + chunk);
      for (const [index, token] of part.entries())
        batch.add(token, begin + index, 0, begin + index === prompt.length - 1);
      if (begin + chunk >= prompt.length) rows.add(batch.length - 1, sampler);
      context.step(batch, rows, out);
    }
    for (let token = out[0]!; !model.isEog(token); token = out[0]!) {
      tokens.push(token);
      batch.clear();
      rows.clear();
      rows.add(batch.add(token, prompt.length + tokens.length - 1, 0, true), sampler);
      context.step(batch, rows, out);
    }
    expect(toText(model, tokens)).toBe(toText(model, generate(model, prompt)));
  });

  test("logits agree with the token that greedy took, and are there only where asked for", () => {
    const prompt = ask("What is 7 + 5?");
    using context = Context.open(model, contextOptions());
    using sampler = SamplerChain.open(model, GREEDY);
    const batch = new Batch(512);
    const rows = new StepRows(1);
    const out = new Int32Array(1);
    rows.add(addPrompt(batch, prompt, 0), sampler);
    context.step(batch, rows, out);
    const logits = context.logits(prompt.length - 1);
    expect(logits.length).toBe(model.vocabSize);
    expect(logits.indexOf(Math.max(...logits))).toBe(out[0]!);
    expect(() => context.logits(0)).toThrow("assertion failed");
    expect(() => context.logits(prompt.length)).toThrow("assertion failed");
  });
});

describe("memory sequences", () => {
  test("a copied sequence goes on as the original does; a removed one is empty", () => {
    const prompt = ask("Count to 30.");
    using context = Context.open(model, contextOptions({ sequences: 3 }));
    using first = SamplerChain.open(model, GREEDY);
    using second = SamplerChain.open(model, GREEDY);
    const batch = new Batch(512);
    const rows = new StepRows(3);
    const out = new Int32Array(3);
    rows.add(addPrompt(batch, prompt, 0), first);
    context.step(batch, rows, out);
    expect(context.sequencePositionMax(0)).toBe(prompt.length - 1);
    expect(context.sequencePositionMax(1)).toBe(-1);
    context.copySequence(0, 1, 0, -1);
    expect(context.sequencePositionMax(1)).toBe(prompt.length - 1);
    let token = out[0]!;
    for (let step = 0; step < 20; step += 1) {
      batch.clear();
      rows.clear();
      rows.add(batch.add(token, prompt.length + step, 0, true), first);
      rows.add(batch.add(token, prompt.length + step, 1, true), second);
      context.step(batch, rows, out);
      expect(out[1]).toBe(out[0] ?? -1);
      token = out[0]!;
    }
    expect(context.removeSequence(0, prompt.length, -1)).toBe(true);
    expect(context.sequencePositionMax(0)).toBe(prompt.length - 1);
    context.keepSequence(1);
    expect([0, 1, 2].map((sequence) => context.sequencePositionMax(sequence))).toEqual([-1, prompt.length + 19, -1]);
    context.clear();
    expect(context.sequencePositionMax(1)).toBe(-1);
  });

  test("a full cache is a fault and leaves the context usable", () => {
    using context = Context.open(model, contextOptions({ contextTokens: 256, sequences: 2 }));
    const batch = new Batch(512);
    const rows = new StepRows(2);
    for (let position = 0; position < context.contextTokens; position += 1) batch.add(5, position, 0, false);
    context.step(batch, rows, new Int32Array(2));
    batch.clear();
    batch.add(5, 0, 1, false);
    const fault = faultOf(() => context.step(batch, rows, new Int32Array(2)));
    expect([fault.code, fault.reason]).toEqual(["memory_short", "kv_full"]);
    context.removeSequence(0, 0, -1);
    context.step(batch, rows, new Int32Array(2));
    expect(context.sequencePositionMax(1)).toBe(0);
  });

  test("a gap in the positions is a fault", () => {
    using context = Context.open(model, contextOptions());
    const batch = new Batch(512);
    batch.add(5, 0, 0, false);
    context.step(batch, new StepRows(1), new Int32Array(1));
    batch.clear();
    batch.add(5, 7, 0, false);
    const fault = faultOf(() => context.step(batch, new StepRows(1), new Int32Array(1)));
    expect([fault.code, fault.reason]).toEqual(["native_failed", "decode"]);
  });
});

describe("abort", () => {
  test("ends a step with a fault, and the context goes on once lowered", () => {
    const prompt = ask("What is the capital of France?");
    using context = Context.open(model, contextOptions());
    using sampler = SamplerChain.open(model, GREEDY);
    const batch = new Batch(512);
    const rows = new StepRows(1);
    const out = new Int32Array(1);
    rows.add(addPrompt(batch, prompt, 0), sampler);
    context.setAbort(true);
    const fault = faultOf(() => context.step(batch, rows, out));
    expect([fault.code, fault.reason]).toEqual(["cancelled", "aborted"]);
    context.setAbort(false);
    context.clear();
    context.step(batch, rows, out);
    expect(toText(model, [out[0]!])).toBe("The");
  });

  test("another thread can raise the flag in the middle of a long step", async () => {
    using context = Context.open(model, contextOptions({ contextTokens: 2048, batchTokens: 2048 }));
    const source = "onmessage = ({ data }) => { Atomics.wait(data, 0, 0, 20); Atomics.store(data, 0, 1); };";
    const url = URL.createObjectURL(new Blob([source]));
    const worker = new Worker(url);
    worker.postMessage(context.abortFlag, []);
    const batch = new Batch(2048);
    for (let position = 0; position < 2048; position += 1) batch.add(5 + (position % 50), position, 0, false);
    const stepUntilAborted = async (): Promise<string> => {
      for (;;) {
        context.clear();
        try {
          context.step(batch, new StepRows(1), new Int32Array(1));
        } catch (error) {
          return error instanceof Fault ? `${error.code} ${error.reason}` : String(error);
        }
        await new Promise((resolve) => setImmediate(resolve)); // the worker starts through this thread's event loop
      }
    };
    expect(await stepUntilAborted()).toBe("cancelled aborted");
    worker.terminate();
    URL.revokeObjectURL(url);
  });
});

describe("ownership", () => {
  test("disposing the model first takes contexts, samplers and templates along", () => {
    const parent = Model.open(native, DEMO_MODEL);
    const context = Context.open(parent, contextOptions());
    const sampler = SamplerChain.open(parent, GREEDY);
    const templates = ChatTemplates.open(parent);
    const batch = new Batch(8);
    const rows = new StepRows(1);
    rows.add(batch.add(5, 0, 0, true), sampler);
    parent[Symbol.dispose]();
    expect([context.disposed, sampler.disposed, templates.disposed]).toEqual([true, true, true]);
    expect(faultOf(() => context.clear()).code).toBe("disposed");
    expect(faultOf(() => context.sequencePositionMax(0)).code).toBe("disposed");
    expect(faultOf(() => sampler.reset()).code).toBe("disposed");
    expect(faultOf(() => new StepRows(1).add(0, sampler)).code).toBe("disposed");
    expect(faultOf(() => templates.apply({ messages: [{ role: "user", content: "x" }] })).code).toBe("disposed");
    expect(faultOf(() => Context.open(parent, contextOptions())).code).toBe("disposed");
    expect(faultOf(() => SamplerChain.open(parent, GREEDY)).code).toBe("disposed");
    for (const handle of [context, sampler, templates, parent]) handle[Symbol.dispose]();
  });

  test("a sampler closed between filling the rows and the step is refused", () => {
    using context = Context.open(model, contextOptions());
    const sampler = SamplerChain.open(model, GREEDY);
    const batch = new Batch(8);
    const rows = new StepRows(1);
    rows.add(batch.add(5, 0, 0, true), sampler);
    sampler[Symbol.dispose]();
    expect(() => context.step(batch, rows, new Int32Array(1))).toThrow("live sampler");
  });
});

describe("what llama.cpp would end the process over is refused before", () => {
  test("batches", () => {
    using context = Context.open(model, contextOptions({ batchTokens: 8, microBatchTokens: 8, sequences: 2 }));
    using sampler = SamplerChain.open(model, GREEDY);
    const step = (fill: (batch: Batch, rows: StepRows) => void): (() => void) => {
      const batch = new Batch(16);
      const rows = new StepRows(4);
      return () => {
        fill(batch, rows);
        context.step(batch, rows, new Int32Array(4));
      };
    };
    const refused = [
      step(() => {}),
      step((batch) => Array.from({ length: 9 }, (_, index) => batch.add(1, index, 0, false))),
      step((batch) => Array.from({ length: 17 }, (_, index) => batch.add(1, index, 0, false))),
      step((batch) => batch.add(1, 0, 2, false)),
      step((batch) => batch.add(1, 0, -1, false)),
      step((batch) => batch.add(1024, 0, 0, false)),
      step((batch) => batch.add(-1, 0, 0, false)),
      step((batch) => batch.add(1, -1, 0, false)),
      step((batch, rows) => rows.add(batch.add(1, 0, 0, false), sampler)),
      step((batch, rows) => [batch.add(1, 0, 0, true), rows.add(1, sampler)]),
      step((batch) => Array.from({ length: 3 }, (_, index) => batch.add(1, index, 0, true))),
    ];
    for (const run of refused) expect(run).toThrow("assertion failed");
    expect(() => context.removeSequence(2, 0, -1)).toThrow("assertion failed");
    expect(() => context.copySequence(0, 7, 0, -1)).toThrow("assertion failed");
    using separate = Context.open(model, contextOptions({ sequences: 2, kvUnified: false }));
    separate.copySequence(0, 1, 0, -1);
    expect(() => separate.copySequence(0, 1, 0, 5)).toThrow("assertion failed");
    step((batch, rows) => rows.add(batch.add(1, 0, 0, true), sampler))();
  });

  test("context sizes", () => {
    const refused = [
      { contextTokens: 0 },
      { contextTokens: 2_000_000_000 },
      { sequences: 0 },
      { sequences: 257 },
      { batchTokens: 2, microBatchTokens: 2, sequences: 3 },
      { batchTokens: 16, microBatchTokens: 32 },
      { threads: 0 },
      { contextTokens: 1.5 },
    ];
    for (const overrides of refused)
      expect(() => Context.open(model, contextOptions(overrides))).toThrow("assertion failed");
    using vocabOnly = Model.open(native, DEMO_MODEL, { vocabOnly: true });
    expect(() => Context.open(vocabOnly, contextOptions())).toThrow("assertion failed");
  });
});
