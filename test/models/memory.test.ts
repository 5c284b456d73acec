/** The memory formula against sums done by hand and against what the library itself reported for the same shapes. */
import { describe, expect, test } from "bun:test";
import type { GgufEntry, GgufHeader, GgufTensor } from "../../src/models/gguf.ts";
import { checkGguf } from "../../src/models/gguf-check.ts";
import { TENSOR_TYPES } from "../../src/models/gguf-types.ts";
import { memoryFit, memoryNeed } from "../../src/models/memory.ts";
import { DEMO_MODEL } from "./gguf-mutants.ts";

interface Shape {
  layers: number;
  embedding: number;
  heads: number;
  headsKv: number;
  feedForward: number;
  vocabulary: number;
  more?: Record<string, number>;
}

const shaped = (shape: Shape): GgufHeader => {
  const numbers: Record<string, number> = {
    context_length: 131_072,
    block_count: shape.layers,
    embedding_length: shape.embedding,
    feed_forward_length: shape.feedForward,
    "attention.head_count": shape.heads,
    "attention.head_count_kv": shape.headsKv,
    ...shape.more,
  };
  const metadata = new Map<string, GgufEntry>([
    ["general.architecture", { type: "string", value: "llama" }],
    ["tokenizer.ggml.tokens", { type: "array", value: { itemType: "string", count: shape.vocabulary, items: null } }],
  ]);
  for (const [key, value] of Object.entries(numbers)) metadata.set(`llama.${key}`, { type: "u32", value });
  const tensor: GgufTensor = {
    name: "x",
    dimensions: [32],
    type: TENSOR_TYPES.get(8)!,
    elements: 32,
    sizeBytes: 34,
    offset: 0,
  };
  return {
    path: "x",
    version: 3,
    metadata,
    tensors: [tensor],
    alignmentBytes: 32,
    dataOffset: 0,
    fileSizeBytes: 0,
    parts: ["x"],
  };
};

test("the demo model by hand: 4 layers, 2 key/value heads of 64, f16", async () => {
  const need = memoryNeed({ header: await checkGguf(DEMO_MODEL), contextTokens: 2048, rows: 4 });
  expect(need.weightsBytes).toBe(3_662_304 - 32_224);
  expect(need.kvBytesPerToken).toBe(4 * 2 * (64 + 64) * 2);
  expect(need.kvBytes).toBe(2048 * 4 * 2048);
  expect(need.recurrentBytes).toBe(0);
  expect(need.conservative).toEqual([]);
  expect(need.totalBytes).toBe(need.weightsBytes + need.kvBytes + need.computeBytes);
});

/**
 * `llama_get_memory_breakdown` of llama.cpp v0.4.0 on Linux x64 with a unified cache, as the library's own simulated
 * allocation gave it (a cache per row has a smaller attention mask, so that there the formula errs on the safe side): cells, rows, micro batch → key/value bytes, compute bytes.
 */
const MEASURED: readonly {
  name: string;
  shape: Shape;
  runs: readonly (readonly [number, number, number, number, number])[];
}[] = [
  {
    name: "demo model",
    shape: { layers: 4, embedding: 256, heads: 4, headsKv: 2, feedForward: 768, vocabulary: 1024 },
    runs: [
      [2048, 4, 512, 4_194_304, 8_925_216],
      [8192, 4, 512, 16_777_216, 15_216_672],
      [32_768, 4, 512, 67_108_864, 40_382_496],
      [8192, 4, 2048, 16_777_216, 60_866_592],
    ],
  },
  {
    name: "0.5B",
    shape: { layers: 24, embedding: 896, heads: 14, headsKv: 2, feedForward: 4864, vocabulary: 151_936 },
    runs: [
      [8192, 1, 512, 100_663_296, 45_625_376],
      [32_768, 4, 512, 402_653_184, 70_791_200],
      [8192, 4, 2048, 100_663_296, 182_501_408],
    ],
  },
  {
    name: "1B",
    shape: { layers: 16, embedding: 2048, heads: 32, headsKv: 8, feedForward: 8192, vocabulary: 128_256 },
    runs: [
      [8192, 1, 512, 268_435_456, 75_509_792],
      [32_768, 4, 512, 1_073_741_824, 100_675_616],
    ],
  },
  {
    name: "8B",
    shape: { layers: 32, embedding: 4096, heads: 32, headsKv: 8, feedForward: 14_336, vocabulary: 128_256 },
    runs: [
      [8192, 1, 512, 1_073_741_824, 130_035_744],
      [32_768, 4, 512, 4_294_967_296, 155_201_568],
    ],
  },
  {
    name: "8 experts, 2 used",
    shape: {
      layers: 32,
      embedding: 4096,
      heads: 32,
      headsKv: 8,
      feedForward: 14_336,
      vocabulary: 32_000,
      more: { expert_count: 8, expert_used_count: 2 },
    },
    runs: [
      [8192, 1, 512, 1_073_741_824, 218_116_128],
      [32_768, 4, 512, 4_294_967_296, 243_281_952],
    ],
  },
];

describe("against the library", () => {
  for (const { name, shape, runs } of MEASURED)
    test(name, () => {
      for (const [cells, rows, microBatchTokens, kvBytes, computeBytes] of runs) {
        const need = memoryNeed({ header: shaped(shape), contextTokens: cells / rows, rows, microBatchTokens });
        expect(need.kvBytes).toBe(kvBytes);
        // The formula also holds the logits outside the graph, which the library counts elsewhere.
        const graphBytes = need.computeBytes - rows * 4 * shape.vocabulary;
        expect(Math.abs(graphBytes - computeBytes)).toBeLessThan(100);
      }
    });
});

test("every row's cells are rounded up by themselves", () => {
  const shape: Shape = { layers: 4, embedding: 256, heads: 4, headsKv: 2, feedForward: 768, vocabulary: 1024 };
  const kvBytes = (contextTokens: number, rows: number): number =>
    memoryNeed({ header: shaped(shape), contextTokens, rows }).kvBytes;
  // `llama_n_ctx` with a cache per row said 2048 and 65,536 cells.
  expect(kvBytes(300, 4)).toBe(kvBytes(2048, 1));
  expect(kvBytes(64, 256)).toBe(kvBytes(65_536, 1));
});

describe("other shapes", () => {
  const base: Shape = { layers: 4, embedding: 256, heads: 4, headsKv: 2, feedForward: 768, vocabulary: 1024 };
  const need = (more: Record<string, number>) =>
    memoryNeed({ header: shaped({ ...base, more }), contextTokens: 256, rows: 2 });

  test("sliding windows are counted whole and said to be", () => {
    expect(need({ "attention.sliding_window": 64 })).toMatchObject({
      kvBytes: need({}).kvBytes,
      conservative: ["sliding_window"],
    });
  });

  test("recurrent state counts per row", () => {
    const recurrent = need({ "ssm.inner_size": 512, "ssm.state_size": 16, "ssm.conv_kernel": 4 });
    expect(recurrent.recurrentBytes).toBe(2 * 4 * (512 * 16 + 3 * 512) * 4);
    expect(recurrent.conservative).toEqual(["recurrent"]);
  });

  test("layers that share a cache count once", () => {
    expect(need({ "attention.shared_kv_layers": 2 }).kvBytes).toBe(need({}).kvBytes / 2);
  });

  test("explicit head lengths win over the width", () => {
    expect(need({ "attention.key_length": 128, "attention.value_length": 96 }).kvBytesPerToken).toBe(
      4 * 2 * (128 + 96) * 2,
    );
  });

  test("q8_0 keys and values take 34 bytes for 32", () => {
    const header = shaped(base);
    const f16 = memoryNeed({ header, contextTokens: 256, rows: 2 });
    expect(memoryNeed({ header, contextTokens: 256, rows: 2, kvValueBytes: 34 / 32 }).kvBytes).toBe(
      (f16.kvBytes * 17) / 32,
    );
  });
});

test("the verdict, and the largest context that would fit", async () => {
  const header = await checkGguf(DEMO_MODEL);
  const shape = { header, contextTokens: 2048, rows: 4 };
  const { totalBytes } = memoryNeed(shape);
  expect(memoryFit({ ...shape, availableBytes: totalBytes })).toMatchObject({ fits: true, contextTokensMax: 2048 });
  const short = memoryFit({ ...shape, availableBytes: totalBytes - 1 });
  expect([short.fits, short.contextTokensMax]).toEqual([false, 1792]);
  expect(memoryNeed({ ...shape, contextTokens: short.contextTokensMax }).totalBytes).toBeLessThan(totalBytes);
  expect(memoryFit({ ...shape, availableBytes: 1000 })).toMatchObject({ fits: false, contextTokensMax: 0 });
});
