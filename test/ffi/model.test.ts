/** A model file on the real library: facts, metadata, tokenizer, and the ways a file can be bad without ending the process. */
import { beforeAll, describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { Model } from "../../ffi/model.ts";
import type { Native } from "../../ffi/native.ts";
import { Fault } from "../../src/core/fault.ts";
import { demoNative, NATIVE_DEADLINE_MS } from "../support/demo-model.ts";
import { faultOf } from "../support/fault-of.ts";
import { DEMO_MODEL } from "../support/native.ts";
import { tempDir } from "../support/temp-dir.ts";

let native: Native;
beforeAll(async () => {
  native = await demoNative();
}, NATIVE_DEADLINE_MS);

describe("model", () => {
  test("says what the file holds", () => {
    using model = Model.open(native, DEMO_MODEL);
    expect(model.vocabSize).toBe(1024);
    expect(model.contextTrainTokens).toBe(2048);
    expect(model.parameters).toBe(3_410_176);
    expect(model.sizeBytes).toBeGreaterThan(3_500_000);
    expect(model.layers).toBe(4);
    expect(model.embeddingSize).toBe(256);
    expect([model.hasEncoder, model.hasDecoder, model.recurrent, model.addBos]).toEqual([false, true, false, false]);
    expect(model.description).toContain("Q8_0");
    expect(model.meta("general.architecture")).toBe("llama");
    expect(model.meta("tokenizer.chat_template")?.length).toBeGreaterThan(500);
    expect(model.meta("no.such.key")).toBeNull();
    expect(model.recommendedSampling()).toEqual({});
  });

  test("reports progress up to 1, and ends the load when the report throws", () => {
    const seen: number[] = [];
    Model.open(native, DEMO_MODEL, { onProgress: (fraction) => seen.push(fraction) })[Symbol.dispose]();
    expect(seen.at(-1)).toBe(1);
    const stop = new Error("enough");
    const onProgress = (): void => {
      throw stop;
    };
    expect(() => Model.open(native, DEMO_MODEL, { onProgress })).toThrow(stop);
  });

  test("tokenizes and gives the same bytes back", () => {
    using model = Model.open(native, DEMO_MODEL);
    const texts = ["The capital of France is Paris.", "", " a\n\tb", "naïve 漢字 😀 \0 end", "x".repeat(5000)];
    for (const text of texts) {
      const tokens = model.tokenize(text, { special: false });
      const bytes = Buffer.concat(Array.from(tokens, (token) => model.piece(token)));
      expect(bytes.toString("utf8")).toBe(text);
    }
  });

  test("reads marks as tokens only when asked to", () => {
    using model = Model.open(native, DEMO_MODEL);
    const marked = model.tokenize("<|im_end|>", { special: true });
    expect(marked.length).toBe(1);
    const mark = marked[0]!;
    expect(model.isEog(mark)).toBe(true);
    expect(model.piece(mark).length).toBe(0);
    expect(Buffer.from(model.piece(mark, { special: true })).toString()).toBe("<|im_end|>");
    const plain = model.tokenize("<|im_end|>", { special: false });
    expect(plain.length).toBeGreaterThan(1);
    expect(plain).not.toContain(mark);
    expect(model.isEog(plain[0]!)).toBe(false);
  });

  test("refuses a text that cannot fit, without the quadratic reading of marks", () => {
    using model = Model.open(native, DEMO_MODEL);
    const isTooLong = (text: string, tokensMax: number): boolean => {
      const fault = faultOf(() => model.tokenize(text, { special: true, tokensMax }));
      return fault.code === "bad_request" && fault.reason === "request_exceeds_context";
    };
    expect(isTooLong("<|im_start|>".repeat(1_000_000), 2048)).toBe(true);
    expect(isTooLong("<|im_start|>".repeat(3000), 2999)).toBe(true);
    expect(isTooLong("a".repeat(16_000_000), 8192)).toBe(true);
    expect(model.tokenize("<|im_start|>".repeat(3000), { special: true, tokensMax: 3000 }).length).toBe(3000);
  });

  test("vocabulary only: tokenizer and metadata without weights", () => {
    using model = Model.open(native, DEMO_MODEL, { vocabOnly: true });
    expect(model.tokenize("Hello", { special: false }).length).toBeGreaterThan(0);
    expect(model.meta("general.architecture")).toBe("llama");
  });

  test("after dispose every use is a fault, and a second dispose is harmless", () => {
    const model = Model.open(native, DEMO_MODEL);
    model[Symbol.dispose]();
    model[Symbol.dispose]();
    expect(model.disposed).toBe(true);
    for (const use of [
      () => model.meta("general.name"),
      () => model.tokenize("x", { special: true }),
      () => model.piece(1),
      () => model.isEog(1),
      () => model.recommendedSampling(),
    ])
      expect(faultOf(use).code).toBe("disposed");
  });
});

describe("a bad file is a fault", () => {
  const loadFault = (path: string): Fault => faultOf(() => Model.open(native, path));

  test("absent", () => {
    const fault = loadFault("/nonexistent/model.gguf");
    expect(fault.code).toBe("model_invalid");
    expect(fault.message).toMatch(/could not be loaded/);
  });

  test("not GGUF, empty, cut in the header, cut in the tensors, of an unknown architecture", async () => {
    await using dir = await tempDir();
    const good = await Bun.file(DEMO_MODEL).bytes();
    const renamed = good.slice();
    const at = Buffer.from(renamed).indexOf("llama", Buffer.from(renamed).indexOf("general.architecture"));
    renamed.set(Buffer.from("zzzzz"), at);
    const files: readonly (readonly [string, Uint8Array])[] = [
      ["text.gguf", Buffer.from("this is no model file at all, only some text")],
      ["empty.gguf", new Uint8Array(0)],
      ["header.gguf", good.subarray(0, 1000)],
      ["tensors.gguf", good.subarray(0, good.length - 100_000)],
      ["architecture.gguf", renamed],
    ];
    for (const [name, bytes] of files) {
      const path = join(dir.path, name);
      writeFileSync(path, bytes);
      const fault = loadFault(path);
      expect([name, fault.code]).toEqual([name, "model_invalid"]);
    }
    expect(loadFault(join(dir.path, "architecture.gguf")).message).toContain("zzzzz");
    expect(native.drainLoadLog().join("\n")).toContain("zzzzz");
    expect(native.drainLoadLog()).toEqual([]);
  });
});
