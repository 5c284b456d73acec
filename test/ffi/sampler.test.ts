/** Samplers on the real library: seeds, limits of the candidate list, and answers that may not end. */
import { beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { ChatTemplates } from "../../ffi/chat.ts";
import { Model } from "../../ffi/model.ts";
import { SamplerChain, type SamplerOptions } from "../../ffi/sampler.ts";
import { demoNative, generate, GREEDY, NATIVE_DEADLINE_MS, toText } from "../support/demo-model.ts";
import { faultOf } from "../support/fault-of.ts";
import { DEMO_MODEL, nativeForTests } from "../support/native.ts";

const FFI = join(import.meta.dir, "../../ffi");

let model: Model;
let prompt: Int32Array;
beforeAll(async () => {
  model = Model.open(await demoNative(), DEMO_MODEL);
  using chat = ChatTemplates.open(model);
  const messages = [{ role: "user", content: "Tell me a story about a fox." }];
  prompt = model.tokenize(chat.apply({ messages }).prompt, { special: true });
}, NATIVE_DEADLINE_MS);

const run = (overrides: Partial<SamplerOptions>, tokensMax = 40): readonly number[] =>
  generate(model, prompt, { sampling: { ...GREEDY, ...overrides }, tokensMax });

describe("sampler", () => {
  test("the same seed gives the same tokens, another one other tokens", () => {
    const hot = { temperature: 1.5, topK: 0 };
    const seeded = run({ ...hot, seed: 42 });
    expect(run({ ...hot, seed: 42 })).toEqual(seeded);
    expect(run({ ...hot, seed: 43 })).not.toEqual(seeded);
    expect(run({ ...hot, seed: null })).not.toEqual(run({ ...hot, seed: null }));
  });

  test("the largest and negative seeds are seeds too, not randomness", () => {
    const hot = { temperature: 1.5, topK: 0 };
    for (const seed of [0xffff_ffff, -1, 0, Number.MAX_SAFE_INTEGER, 2 ** 63, -(2 ** 63)])
      expect(run({ ...hot, seed })).toEqual(run({ ...hot, seed }));
  });

  test("a list of one candidate is greedy, whichever limit makes it", () => {
    const greedy = run({});
    const hot = { temperature: 2, seed: 7 };
    expect(run({ ...hot, topK: 1 })).toEqual(greedy);
    expect(run({ ...hot, topK: 0, topP: 0 })).toEqual(greedy);
    expect(run({ ...hot, topK: 0, minP: 1 })).toEqual(greedy);
    expect(run({ ...hot, topK: 0 })).not.toEqual(greedy);
  });

  test("greedy agrees with upstream's chain at temperature 0", () => {
    // With a limit of one candidate the chain is used instead of the shortcut; both must choose alike.
    expect(run({ temperature: 1e-6, topK: 0, seed: 1 }, 80)).toEqual(run({}, 80));
  });

  test("ignoreEos goes on to the bound, greedily and not", () => {
    for (const sampling of [{}, { temperature: 1, seed: 3 }]) {
      const tokens = run({ ...sampling, ignoreEos: true }, 200);
      expect(tokens.length).toBe(200);
      expect(tokens.some((token) => model.isEog(token))).toBe(false);
    }
    expect(toText(model, run({}, 200))).toStartWith("There once was");
  });

  test("reset starts the seed's sequence again", () => {
    const options = { ...GREEDY, temperature: 1.5, topK: 0, seed: 5 };
    const sampler = SamplerChain.open(model, options);
    sampler.reset();
    sampler[Symbol.dispose]();
    sampler[Symbol.dispose]();
    expect(sampler.disposed).toBe(true);
    expect(faultOf(() => sampler.reset()).code).toBe("disposed");
  });

  test("values out of range are bugs of the caller", () => {
    const wrong: Partial<SamplerOptions>[] = [
      { temperature: -1 },
      { temperature: Number.NaN },
      { topK: -1 },
      { topK: 1.5 },
      { topP: 2 },
      { minP: -0.1 },
      { seed: 0.5 },
    ];
    for (const overrides of wrong)
      expect(() => SamplerChain.open(model, { ...GREEDY, ...overrides })).toThrow("assertion failed");
  });

  test("a grammar that does not compile is a bad request; a good one shapes the answer", () => {
    const grammar = (text: string): SamplerOptions => ({
      ...GREEDY,
      grammar: {
        text,
        lazy: false,
        generationPrompt: "",
        triggers: [],
        preservedTokens: [],
        thinkingStart: "",
        thinkingEnds: [],
      },
    });
    const fault = faultOf(() => SamplerChain.open(model, grammar("root ::= (")));
    expect([fault.code, fault.reason]).toEqual(["bad_request", "grammar"]);
    const tokens = generate(model, prompt, { sampling: grammar('root ::= "yes" | "no"') });
    expect(["yes", "no"]).toContain(toText(model, tokens));
    // The grammar ends and the end token is banned: the row ends without one, and nothing dies.
    const endless = { ...grammar('root ::= "yes"'), ignoreEos: true };
    expect(toText(model, generate(model, prompt, { sampling: endless }))).toBe("yes");
  });

  test("a refused grammar is printed nowhere", async () => {
    const grammar = { text: "root ::= (CANARY", lazy: false, generationPrompt: "", triggers: [], preservedTokens: [] };
    const script = `
      import { Model } from ${JSON.stringify(join(FFI, "model.ts"))};
      import { openNative } from ${JSON.stringify(join(FFI, "native.ts"))};
      import { SamplerChain } from ${JSON.stringify(join(FFI, "sampler.ts"))};
      const model = Model.open(openNative(${JSON.stringify(await nativeForTests())}), ${JSON.stringify(DEMO_MODEL)});
      const grammar = ${JSON.stringify({ ...grammar, thinkingStart: "", thinkingEnds: [] })};
      try { SamplerChain.open(model, { ...${JSON.stringify(GREEDY)}, grammar }); } catch (fault) { process.stdout.write(fault.code); }`;
    const child = Bun.spawn([process.execPath, "-e", script], { stdout: "pipe", stderr: "pipe" });
    const [out, log] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
    expect([out, log]).toEqual(["bad_request", ""]);
  });
});
