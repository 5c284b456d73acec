/** What the GGUF reader says about the demo model and about small files made for one purpose each. */
import { describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  arrayAt,
  ggufHeaderSha256,
  numberAt,
  readGgufHeader,
  stringAt,
  templateSha256,
} from "../../src/models/gguf.ts";
import { describeGguf } from "../../src/models/gguf-describe.ts";
import { TENSOR_TYPES } from "../../src/models/gguf-types.ts";
import { tempDir } from "../support/temp-dir.ts";
import { buildGguf, list, smallModel, text, u32, withKey } from "./gguf-builder.ts";

const DEMO = join(import.meta.dir, "../../assets/demo-model/darkbloom-demo-q8_0.gguf");

describe("the demo model", () => {
  test("has the header its card tells", async () => {
    const header = await readGgufHeader(DEMO);
    expect(header.version).toBe(3);
    expect(header.tensors.length).toBe(38);
    expect(header.dataOffset).toBe(32_224);
    expect(header.fileSizeBytes).toBe(3_662_304);
    expect(numberAt(header, "llama.context_length")).toBe(2048);
    expect(arrayAt(header, "tokenizer.ggml.tokens")?.count).toBe(1024);
    expect(header.tensors[0]?.dimensions).toEqual([256, 1024]);
  });

  test("is described", async () => {
    expect(describeGguf(await readGgufHeader(DEMO))).toEqual({
      name: "Darkbloom demo",
      architecture: "llama",
      contextTokens: 2048,
      layers: 4,
      embedding: 256,
      heads: [4, 4, 4, 4],
      headsKv: [2, 2, 2, 2],
      keyLength: 64,
      valueLength: 64,
      quantization: "Q8_0",
      parameters: 3_410_176,
      weightsBytes: 3_630_080,
      hasTemplate: true,
      vision: false,
    });
  });

  test("ends where its last tensor ends", async () => {
    const header = await readGgufHeader(DEMO);
    const last = header.tensors.at(-1)!;
    expect(header.dataOffset + last.offset + last.sizeBytes).toBe(header.fileSizeBytes);
  });

  test("header hash is that of the bytes before the data, template hash that of the template", async () => {
    const header = await readGgufHeader(DEMO);
    const bytes = await readFile(DEMO);
    const direct = createHash("sha256").update(bytes.subarray(0, header.dataOffset)).digest("hex");
    expect(await ggufHeaderSha256(DEMO)).toBe(direct);
    const template = stringAt(header, "tokenizer.chat_template")!;
    expect(bytes.includes(template)).toBe(true);
    expect(templateSha256(header)).toBe(createHash("sha256").update(template).digest("hex"));
  });
});

describe("reading", () => {
  const read = async (bytes: Uint8Array, keep: string[] = []) => {
    await using dir = await tempDir();
    const path = join(dir.path, "model.gguf");
    await writeFile(path, bytes);
    return await readGgufHeader(path, { keep });
  };

  test("every value type comes back as written", async () => {
    const spec = {
      ...smallModel(),
      metadata: [
        ["u8", { type: "u8", value: 200 }],
        ["i8", { type: "i8", value: -3 }],
        ["u16", { type: "u16", value: 65_000 }],
        ["i16", { type: "i16", value: -300 }],
        ["u32", { type: "u32", value: 4_000_000_000 }],
        ["i32", { type: "i32", value: -70_000 }],
        ["f32", { type: "f32", value: 0.5 }],
        ["f64", { type: "f64", value: 1e300 }],
        ["u64", { type: "u64", value: 2n ** 63n }],
        ["i64", { type: "i64", value: -(2n ** 62n) }],
        ["yes", { type: "bool", value: true }],
        ["text", { type: "string", value: "Grüße 🌱" }],
      ] as ReturnType<typeof smallModel>["metadata"],
    };
    const { metadata } = await read(buildGguf(spec));
    for (const [key, value] of spec.metadata) expect(metadata.get(key)).toEqual(value as never);
  });

  test("long arrays keep their count only, unless asked", async () => {
    const items = Array.from({ length: 5000 }, (_, index) => `token ${index}`);
    const bytes = buildGguf(withKey(smallModel(), "long", list("string", items)));
    const without = await read(bytes);
    expect(arrayAt(without, "long")).toEqual({ itemType: "string", count: 5000, items: null });
    const kept = await read(bytes, ["long"]);
    expect(arrayAt(kept, "long")?.items).toEqual(items);
    expect(kept.tensors).toEqual(without.tensors);
  });

  test("token texts that are not UTF-8 stay different from each other", async () => {
    const bytes = buildGguf(
      withKey(smallModel(), "raw", list("string", [new Uint8Array([0xff]), new Uint8Array([0xfe])])),
    );
    const [a, b] = arrayAt(await read(bytes), "raw")!.items!;
    expect(a).not.toBe(b!);
  });

  test("texts larger than one read block come back whole", async () => {
    const long = "Ω".repeat(400_000);
    expect(stringAt(await read(buildGguf(withKey(smallModel(), "long", text(long)))), "long")).toBe(long);
  });

  test("version 2 and another alignment are read", async () => {
    const spec = withKey({ ...smallModel(), version: 2, alignment: 128 }, "general.alignment", u32(128));
    const header = await read(buildGguf(spec));
    expect([header.version, header.alignmentBytes, header.dataOffset % 128]).toEqual([2, 128, 0]);
  });

  test("a missing file type falls back to the type that most bytes have", async () => {
    const header = await read(buildGguf(smallModel()));
    expect(describeGguf(header).quantization).toBe("Q8_0");
    expect(describeGguf(await read(buildGguf(withKey(smallModel(), "general.file_type", u32(15))))).quantization).toBe(
      "Q4_K_M",
    );
  });

  test("no template, no template hash", async () => {
    expect(
      templateSha256(await read(buildGguf(withKey(smallModel(), "tokenizer.chat_template", null)))),
    ).toBeUndefined();
  });
});

/** Bits per weight as published for these types; a slip in the table would shift every offset. */
test("block sizes give the known bits per weight", () => {
  const bits = (name: string): number => {
    const found = [...TENSOR_TYPES.values()].find((type) => type.name === name)!;
    return (found.blockBytes * 8) / found.blockElements;
  };
  expect(["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"].map(bits)).toEqual([4.5, 5, 5.5, 6, 8.5]);
  expect(["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"].map(bits)).toEqual([2.625, 3.4375, 4.5, 5.5, 6.5625]);
  expect(["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"].map(bits)).toEqual([
    2.0625, 2.3125, 2.5625, 3.0625, 3.4375,
  ]);
  expect(["IQ1_S", "IQ1_M", "IQ4_NL", "IQ4_XS"].map(bits)).toEqual([1.5625, 1.75, 4.5, 4.25]);
  expect(["TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0"].map(bits)).toEqual([
    1.6875, 2.0625, 4.25, 4.5, 1.125, 2.25,
  ]);
  expect(TENSOR_TYPES.size).toBe(35);
});
