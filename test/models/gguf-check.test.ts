/** Every way in which a model file is refused, each with the words a person would need. */
import { describe, expect, test } from "bun:test";
import { mkdir, readFile, symlink, truncate, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { toFileFault } from "../../src/models/file-fault.ts";
import { readGgufHeader } from "../../src/models/gguf.ts";
import { checkGguf } from "../../src/models/gguf-check.ts";
import { rejectedFault } from "./rejected-fault.ts";
import { tempDir } from "../support/temp-dir.ts";
import {
  bool,
  buildGguf,
  f32,
  list,
  smallModel,
  text,
  u32,
  withKey,
  withTensor,
  type GgufSpec,
} from "./gguf-builder.ts";

const DEMO = join(import.meta.dir, "../../assets/demo-model/darkbloom-demo-q8_0.gguf");

const check = async (bytes: Uint8Array) => {
  await using dir = await tempDir();
  const path = join(dir.path, "model.gguf");
  await writeFile(path, bytes);
  return await checkGguf(path);
};

test("the demo model and the small model pass, token texts are not kept", async () => {
  const header = await checkGguf(DEMO);
  expect(header.parts).toEqual([DEMO]);
  expect(header.metadata.get("tokenizer.ggml.tokens")?.value).toEqual({ itemType: "string", count: 1024, items: null });
  await check(buildGguf(smallModel()));
});

const small = smallModel();
const cases: [string, GgufSpec, RegExp][] = [
  ["another kind of file", { ...small, magic: "GGML" }, /does not start with the letters GGUF/],
  ["version 1", { ...small, version: 1 }, /version 1, which is no longer in use/],
  ["version 4", { ...small, version: 4 }, /version 4; versions 2 and 3/],
  ["big endian", { ...small, version: 0x03000000 }, /big endian/],
  ["huge tensor count", { ...small, tensorCount: 2n ** 63n }, /tensor count \d+ is over the limit/],
  ["huge key count", { ...small, metadataCount: 2n ** 64n - 1n }, /key count \d+ is over the limit/],
  [
    "more tensors than there are",
    { ...small, tensorCount: 50n },
    /is over the limit|past the end|no usable name|dimensions/,
  ],
  [
    "a key twice",
    { ...small, metadata: [...small.metadata, ["general.name", text("x")]] },
    /"general.name" appears twice/,
  ],
  ["an empty key", { ...small, metadata: [...small.metadata, ["", text("x")]] }, /is empty/],
  ["array of arrays", withKey(small, "nested", list("array", [])), /array of arrays/],
  [
    "template not UTF-8",
    withKey(small, "tokenizer.chat_template", { type: "string", value: new Uint8Array([0xff]) }),
    /is not UTF-8/,
  ],
  ["alignment 24", withKey(small, "general.alignment", u32(24)), /not a power of two/],
  ["alignment 0", withKey(small, "general.alignment", u32(0)), /not a power of two/],
  ["alignment as text", withKey(small, "general.alignment", text("32")), /general.alignment is not a u32/],
  ["no architecture", withKey(small, "general.architecture", null), /general.architecture is missing/],
  ["architecture as number", withKey(small, "general.architecture", u32(1)), /general.architecture is missing/],
  ["an adapter", withKey(small, "general.type", text("adapter")), /holds "adapter", not a language model/],
  ["a projector", withKey(small, "general.architecture", text("clip")), /image projector/],
  ["a tensor twice", withTensor(small, 3, { name: "blk.0.attn_q.weight" }), /"blk.0.attn_q.weight" appears twice/],
  ["a long tensor name", withTensor(small, 0, { name: "x".repeat(64) }), /length of name of tensor 0 64 is over/],
  ["no dimensions", withTensor(small, 0, { dimensions: [] }), /0 dimensions/],
  ["five dimensions", withTensor(small, 0, { dimensions: [32, 1, 1, 1, 1] }), /5 dimensions/],
  ["a dimension of 0", withTensor(small, 0, { dimensions: [0, 16] }), /dimension of size 0/],
  ["overflowing dimensions", withTensor(small, 0, { dimensions: [2 ** 32, 2 ** 32] }), /too large/],
  ["a negative dimension", withTensor(small, 0, { dimensions: [2n ** 63n, 16] }), /is over the limit/],
  ["a removed type", withTensor(small, 0, { type: 4 }), /unknown type 4/],
  ["an unknown type", withTensor(small, 0, { type: 4_000_000_000 }), /unknown type 4000000000/],
  ["a type for scratch space", withTensor(small, 2, { type: 9 }), /stored as Q8_1, which cannot be computed with/],
  ["whole numbers where weights belong", withTensor(small, 2, { type: 26 }), /stored as I32/],
  ["a norm in F16", withTensor(small, 1, { type: 1 }), /stored as F16/],
  ["a norm in F16 with a dimension of 1", withTensor(small, 1, { type: 1, dimensions: [64, 1] }), /stored as F16/],
  [
    "a quantised offset",
    withTensor(small, 1, { name: "blk.0.attn_q.bias", type: 8, dimensions: [64, 1] }),
    /stored as Q8_0/,
  ],
  ["rows that are no whole blocks", withTensor(small, 0, { dimensions: [48, 16] }), /rows of 48, no multiple of 32/],
  ["an unaligned offset", withTensor(small, 1, { offset: 1089 }), /no multiple of 32/],
  ["overlapping tensors", withTensor(small, 1, { offset: 0 }), /a gap or an overlap/],
  ["a gap", withTensor(small, 1, { offset: 2048 }), /a gap or an overlap/],
  ["data past the end", withTensor(small, 3, { dimensions: [64, 2 ** 40] }), /after the end of the file/],
  ["no tensors", { ...small, tensors: [] }, /has no tensors/],
  ["no context length", withKey(small, "llama.context_length", null), /"llama.context_length" is missing/],
  [
    "context length of another type",
    withKey(small, "llama.context_length", { type: "u64", value: 128n }),
    /is u64, expected u32/,
  ],
  ["no layers", withKey(small, "llama.block_count", u32(0)), /is 0, expected 1 to 512/],
  ["too many layers", withKey(small, "llama.block_count", u32(513)), /is 513, expected 1 to 512/],
  ["heads that do not divide", withKey(small, "llama.attention.head_count", u32(3)), /3 attention heads|rotates/],
  [
    "kv heads that do not divide",
    withKey(withKey(small, "llama.attention.head_count", u32(4)), "llama.attention.head_count_kv", u32(3)),
    /4 attention heads, no multiple of its 3/,
  ],
  [
    "a head list of the wrong length",
    withKey(small, "llama.attention.head_count", list("u32", [2])),
    /neither a u32 nor a list of 2/,
  ],
  [
    "a head list of texts",
    withKey(small, "llama.attention.head_count", list("string", ["2", "2"])),
    /neither a u32 nor a list of 2/,
  ],
  [
    "rope wider than a head",
    withKey(small, "llama.rope.dimension_count", u32(64)),
    /rotates 64 values of attention heads that are 32 wide/,
  ],
  ["an odd rope width", withKey(small, "llama.rope.dimension_count", u32(31)), /rotates 31/],
  ["an epsilon that is no number", withKey(small, "llama.attention.layer_norm_rms_epsilon", f32(Number.NaN)), /is NaN/],
  ["a negative epsilon", withKey(small, "llama.attention.layer_norm_rms_epsilon", f32(-1)), /is -1/],
  ["a rope base of 0", withKey(small, "llama.rope.freq_base", f32(0)), /expected a number above 0/],
  ["unknown rope scaling", withKey(small, "llama.rope.scaling.type", text("magic")), /is "magic", which is unknown/],
  ["experts without use", withKey(small, "llama.expert_count", u32(8)), /expert numbers do not fit/],
  [
    "more experts used than there are",
    withKey(withKey(small, "llama.expert_count", u32(2)), "llama.expert_used_count", u32(3)),
    /expert numbers do not fit/,
  ],
  [
    "expert groups that do not divide",
    withKey(
      withKey(withKey(small, "llama.expert_count", u32(8)), "llama.expert_used_count", u32(2)),
      "llama.expert_group_count",
      u32(3),
    ),
    /expert groups do not fit/,
  ],
  ["prediction layers beyond all", withKey(small, "llama.nextn_predict_layers", u32(3)), /3 prediction layers of 2/],
  ["no tokenizer", withKey(small, "tokenizer.ggml.model", null), /has no tokenizer/],
  ["no tokens", withKey(small, "tokenizer.ggml.tokens", null), /has no tokenizer/],
  ["tokens that are numbers", withKey(small, "tokenizer.ggml.tokens", list("u32", [1, 2])), /not a list of texts/],
  [
    "the same token twice",
    withKey(small, "tokenizer.ggml.tokens", list("string", ["a", "b", "a"])),
    /token 2 has the same text/,
  ],
  [
    "a token with the name of an empty one",
    withKey(small, "tokenizer.ggml.tokens", list("string", ["[EMPTY_1]", ""])),
    /token 1 has the same text/,
  ],
  ["too few token types", withKey(small, "tokenizer.ggml.token_type", list("i32", [1])), /has 1 items for 16 tokens/],
  [
    "token types of another type",
    withKey(
      small,
      "tokenizer.ggml.token_type",
      list(
        "u32",
        Array.from({ length: 16 }, () => 1),
      ),
    ),
    /not a list of i32/,
  ],
  ["too few scores", withKey(small, "tokenizer.ggml.scores", list("f32", [1])), /has 1 items for 16 tokens/],
  ["no merges", withKey(small, "tokenizer.ggml.merges", null), /merges, which "gpt2" needs/],
  [
    "a first token that does not exist",
    withKey(withKey(small, "tokenizer.ggml.pre", text("glm4")), "tokenizer.ggml.add_bos_token", bool(true)),
    /without a valid bos_token_id/,
  ],
];

describe("refused with the reason:", () => {
  for (const [name, spec, reason] of cases)
    test(name, async () => {
      const fault = await rejectedFault(check(buildGguf(spec)));
      expect(fault.code).toBe("model_invalid");
      expect(fault.message).toMatch(reason);
      expect(fault.message).toContain("model.gguf");
      expect(fault.hint).toBeString();
    });
});

test("what looks unusual but is sound passes", async () => {
  const base = smallModel();
  await check(buildGguf(withKey(base, "llama.attention.head_count_kv", list("i32", [1, 2]))));
  await check(buildGguf(withKey(withKey(base, "llama.expert_count", u32(4)), "llama.expert_used_count", u32(2))));
  await check(buildGguf(withKey(base, "llama.rope.scaling.type", text("yarn"))));
  await check(
    buildGguf(
      withKey(
        base,
        "tokenizer.ggml.tokens",
        list(
          "string",
          Array.from({ length: 16 }, (_, i) => (i < 2 ? "" : `t${i}`)),
        ),
      ),
    ),
  );
});

describe("the file itself", () => {
  test("a missing file, a folder, a link to nothing", async () => {
    await using dir = await tempDir();
    const link = join(dir.path, "link.gguf");
    await symlink(join(dir.path, "gone"), link);
    for (const path of [join(dir.path, "none.gguf"), link]) {
      const fault = await rejectedFault(checkGguf(path));
      expect([fault.code, fault.message]).toEqual(["file_missing", `model file ${path} does not exist`]);
    }
    const folder = await rejectedFault(checkGguf(dir.path));
    expect([folder.code, folder.message]).toEqual(["io_failed", `${dir.path} is a folder, not a model file`]);
  });

  test("a device is refused instead of read for ever", async () => {
    expect((await rejectedFault(checkGguf("/dev/zero"))).message).toBe("/dev/zero is not a regular file");
  });

  test("an unreadable file says whose permission is missing", () => {
    const fault = toFileFault(Object.assign(new Error("x"), { code: "EACCES" }), "model file", "/m.gguf");
    expect([fault.code, fault.message, fault.hint]).toEqual([
      "io_failed",
      "model file /m.gguf may not be read by this user",
      "chmod u+r /m.gguf",
    ]);
  });

  test("an empty file and every truncation of the header are refused", async () => {
    await using dir = await tempDir();
    const bytes = buildGguf(smallModel());
    const path = join(dir.path, "model.gguf");
    await writeFile(path, bytes);
    const { dataOffset } = await readGgufHeader(path);
    for (let length = dataOffset; length >= 0; length -= 7) {
      await truncate(path, length);
      expect((await rejectedFault(checkGguf(path))).code).toBe("model_invalid");
    }
  });

  test("one byte short of the last tensor is refused", async () => {
    const bytes = await readFile(DEMO);
    expect((await rejectedFault(check(bytes.subarray(0, -1)))).message).toContain(
      "ends 1 bytes after the end of the file",
    );
  });
});

describe("split models", () => {
  const part = (number: number, count: number, tensors: GgufSpec["tensors"]): Uint8Array => {
    const metadata: GgufSpec["metadata"] =
      number === 0 ? smallModel().metadata : [["general.architecture", text("llama")]];
    const split: GgufSpec["metadata"] = [
      ["split.no", { type: "u16", value: number }],
      ["split.count", { type: "u16", value: count }],
    ];
    return buildGguf({ ...smallModel(), metadata: [...metadata, ...split], tensors });
  };
  const { tensors } = smallModel();
  const first = part(0, 2, tensors.slice(0, 2));
  const second = part(1, 2, tensors.slice(2));
  const write = async (dir: string, files: Record<string, Uint8Array>) => {
    await mkdir(dir, { recursive: true });
    for (const [name, bytes] of Object.entries(files)) await writeFile(join(dir, name), bytes);
  };

  test("all parts together are one model", async () => {
    await using dir = await tempDir();
    await write(dir.path, { "m-00001-of-00002.gguf": first, "m-00002-of-00002.gguf": second });
    const header = await checkGguf(join(dir.path, "m-00001-of-00002.gguf"));
    expect(header.tensors.map((tensor) => tensor.name)).toEqual(tensors.map((tensor) => tensor.name));
    expect(header.parts.map((path) => path.slice(dirname(path).length + 1))).toEqual([
      "m-00001-of-00002.gguf",
      "m-00002-of-00002.gguf",
    ]);
    expect(header.fileSizeBytes).toBe(first.length + second.length);
  });

  test("a missing part is named", async () => {
    await using dir = await tempDir();
    await write(dir.path, { "m-00001-of-00002.gguf": first });
    const fault = await rejectedFault(checkGguf(join(dir.path, "m-00001-of-00002.gguf")));
    expect(fault.code).toBe("file_missing");
    expect(fault.message).toContain("m-00002-of-00002.gguf");
  });

  test("another part than the first points to the first", async () => {
    await using dir = await tempDir();
    await write(dir.path, { "m-00001-of-00002.gguf": first, "m-00002-of-00002.gguf": second });
    const fault = await rejectedFault(checkGguf(join(dir.path, "m-00002-of-00002.gguf")));
    expect(fault.hint).toContain("m-00001-of-00002.gguf");
  });

  test("a renamed, a swapped and a damaged part are refused", async () => {
    await using dir = await tempDir();
    await write(dir.path, {
      "alone.gguf": first,
      "s-00001-of-00002.gguf": first,
      "s-00002-of-00002.gguf": first,
      "d-00001-of-00002.gguf": first,
      "d-00002-of-00002.gguf": second.subarray(0, -64),
    });
    expect((await rejectedFault(checkGguf(join(dir.path, "alone.gguf")))).message).toContain(
      "its name does not end in",
    );
    expect((await rejectedFault(checkGguf(join(dir.path, "s-00001-of-00002.gguf")))).message).toContain(
      "it is not part 2",
    );
    expect((await rejectedFault(checkGguf(join(dir.path, "d-00001-of-00002.gguf")))).message).toContain("cut short");
  });
});
