/** Manifests, aggregates and identities: the sheet's vectors, the file rules, and what must not change the result. */
import { describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { mkdir, readFile, rename, symlink, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import * as fc from "fast-check";
import { Fault } from "../../src/core/fault.ts";
import { aggregateSha256, hashFile } from "../../src/models/hash.ts";
import { listIntegrityFiles, roleOf } from "../../src/models/integrity-files.ts";
import {
  encodeManifest,
  folderManifest,
  hashFolder,
  manifestSha256,
  oneFileManifest,
  type Manifest,
} from "../../src/models/manifest.ts";
import { rejectedFault } from "./rejected-fault.ts";
import { tempDir } from "../support/temp-dir.ts";
import { buildGguf, smallModel, withKey } from "./gguf-builder.ts";

const write = async (root: string, files: Record<string, string | Uint8Array>): Promise<void> => {
  for (const [path, content] of Object.entries(files)) {
    await mkdir(dirname(join(root, path)), { recursive: true });
    await writeFile(join(root, path), content);
  }
};

const VECTOR = { "config.json": "hello", "model.safetensors": "", "tokenizer.json": "{}" };
const VECTOR_AGGREGATE = "90a5f9c17d6898d8689f21ef315aab6ea491d97ff4e08c4b0b81abe5536f824d";
const sha256 = (text: string | Uint8Array): string => createHash("sha256").update(text).digest("hex");

describe("the published vector", () => {
  test("digests and aggregate", async () => {
    await using dir = await tempDir();
    await write(dir.path, VECTOR);
    const files = await hashFolder(dir.path);
    expect(files.map((file) => [file.path, file.sha256.slice(0, 8), file.sha256.slice(-4), file.role])).toEqual([
      ["config.json", "2cf24dba", "9824", "config"],
      ["model.safetensors", "e3b0c442", "b855", "weight"],
      ["tokenizer.json", "44136fa3", "ff8a", "tokenizer"],
    ]);
    expect(aggregateSha256(files)).toBe(VECTOR_AGGREGATE);
  });

  test("the manifest around it", async () => {
    await using dir = await tempDir();
    await write(dir.path, VECTOR);
    const manifest = await folderManifest({ folder: dir.path, id: "org/name", version: "2026-05-23-r1" });
    expect(manifest).toMatchObject({
      schema_version: 1,
      model_id: "org/name",
      version: "2026-05-23-r1",
      aggregate_sha256: VECTOR_AGGREGATE,
      total_size_bytes: 7,
      file_count: 3,
    });
    expect(manifest.r2_prefix).toBe(`v2/org-name--${sha256("org/name").slice(0, 12)}/2026-05-23-r1`);
    const text = encodeManifest(manifest, Date.UTC(2026, 4, 23, 1, 2, 3, 456));
    expect(text.split("\n").slice(0, 4)).toEqual([
      "{",
      `  "aggregate_sha256": "${VECTOR_AGGREGATE}",`,
      '  "created_at": "2026-05-23T01:02:03Z",',
      '  "file_count": 3,',
    ]);
    const keys = Object.keys(JSON.parse(text));
    expect(keys).toEqual(keys.toSorted());
  });
});

describe("which files count", () => {
  test("names, suffixes, hidden entries, case, folders and byte order", async () => {
    await using dir = await tempDir();
    await write(dir.path, {
      "config.json": "1",
      "Config.json": "no",
      "notes.txt": "no",
      "manifest.json": "no",
      "model.GGUF": "no",
      ".hidden.bin": "no",
      ".cache/model.bin": "no",
      "sub/weights.npz": "2",
      "sub/.deep/x.bin": "no",
      "a.bin": "3",
      "Z.bin": "4",
      "é.bin": "5",
      "\u{1F331}.bin": "6",
      "\uFF5E.bin": "7",
      "model.safetensors.index.json": "8",
      "chat_template.jinja": "9",
    });
    await mkdir(join(dir.path, "folder.bin"));
    expect(await listIntegrityFiles(dir.path)).toEqual([
      "Z.bin",
      "a.bin",
      "chat_template.jinja",
      "config.json",
      "model.safetensors.index.json",
      "sub/weights.npz",
      "é.bin",
      // By UTF-16 units the plant would come first.
      "\uFF5E.bin",
      "\u{1F331}.bin",
    ]);
  });

  test("links are read through and keep their own path; links to folders are not followed", async () => {
    await using dir = await tempDir();
    await write(dir.path, { "blobs/0123": "hello", "snapshot/tokenizer.json": "{}" });
    await symlink("../blobs/0123", join(dir.path, "snapshot/config.json"));
    await symlink("..", join(dir.path, "snapshot/loop.bin"));
    const files = await hashFolder(join(dir.path, "snapshot"));
    expect(files.map((file) => [file.path, file.size_bytes, file.sha256])).toEqual([
      ["config.json", 5, sha256("hello")],
      ["tokenizer.json", 2, sha256("{}")],
    ]);
  });

  test("roles", () => {
    const roles = {
      "model-00001-of-00002.safetensors": "weight",
      "model.gguf": "weight",
      "mmproj.gguf": "weight",
      "model.safetensors.index.json": "index",
      "merges.txt": "tokenizer",
      "quantize_config.json": "config",
      "chat_template.jinja": "template",
      "processor_config.json": "preprocessor",
      "README.md": "other",
    } as const;
    for (const [name, role] of Object.entries(roles)) expect(roleOf(name)).toBe(role);
  });

  test("nothing to hash, no folder, a link to nothing: each says which", async () => {
    await using dir = await tempDir();
    await write(dir.path, { "notes.txt": "x" });
    expect(await rejectedFault(hashFolder(dir.path))).toMatchObject({
      code: "file_missing",
      message: expect.stringContaining("no model files"),
    });
    expect(await rejectedFault(hashFolder(join(dir.path, "none")))).toMatchObject({ code: "file_missing" });
    await symlink("gone", join(dir.path, "config.json"));
    expect(await rejectedFault(hashFolder(dir.path))).toMatchObject({
      code: "file_missing",
      message: expect.stringContaining("config.json"),
    });
  });

  test("names a registry would refuse are refused here", async () => {
    await using dir = await tempDir();
    await write(dir.path, { "A.bin": "1", "a.bin": "2" });
    const model = { folder: dir.path, id: "m", version: "v" };
    expect((await rejectedFault(folderManifest(model))).message).toContain("differ only in upper and lower case");
    await rename(join(dir.path, "A.bin"), join(dir.path, "b\\c.bin"));
    expect((await rejectedFault(folderManifest(model))).message).toContain("backslash");
  });
});

describe("GGUF entries", () => {
  test("carry header and template hash; no template, no hash", async () => {
    await using dir = await tempDir();
    const plain = buildGguf(withKey(smallModel(), "tokenizer.chat_template", null));
    const chat = buildGguf(smallModel());
    await write(dir.path, { "chat.gguf": chat, "plain.gguf": plain });
    const [first, second] = await hashFolder(dir.path);
    expect(first).toMatchObject({
      path: "chat.gguf",
      role: "weight",
      sha256: sha256(chat),
      template_sha256: sha256("{{ messages }}"),
    });
    expect(second).not.toHaveProperty("template_sha256");
    expect(second?.gguf_header_sha256).toMatch(/^[0-9a-f]{64}$/);
  });

  test("a file that only has the name is refused before it is hashed, or reported to who asks for that", async () => {
    await using dir = await tempDir();
    await write(dir.path, { "model.gguf": "not a model" });
    const read: number[] = [];
    const options = { onProgress: (done: number) => void read.push(done) };
    expect(await rejectedFault(hashFolder(dir.path, options))).toMatchObject({ code: "model_invalid" });
    expect(read).toEqual([]);
    const bad: Fault[] = [];
    const files = await hashFolder(dir.path, { onBadGguf: (fault) => void bad.push(fault) });
    expect([bad.length, files[0]?.sha256]).toEqual([1, sha256("not a model")]);
  });

  test("a lone file is a manifest that does not depend on its name", async () => {
    await using dir = await tempDir();
    const bytes = buildGguf(smallModel());
    await write(dir.path, { "a.gguf": bytes, "b.gguf": bytes });
    const a = await oneFileManifest(join(dir.path, "a.gguf"), "my-model");
    const b = await oneFileManifest(join(dir.path, "b.gguf"), "my-model");
    expect(a).toEqual(b);
    expect([a.version, a.files[0]?.path]).toEqual([sha256(bytes).slice(0, 12), "model.gguf"]);
    expect(manifestSha256(await oneFileManifest(join(dir.path, "a.gguf"), "other"))).not.toBe(manifestSha256(a));
    const parts = await oneFileManifest([join(dir.path, "a.gguf"), join(dir.path, "b.gguf")], "my-model");
    expect(parts.files.map((file) => file.path)).toEqual(["model-00001-of-00002.gguf", "model-00002-of-00002.gguf"]);
    expect(parts.version).toBe(parts.aggregate_sha256.slice(0, 12));
  });
});

describe("the identity of a build", () => {
  const manifest: Manifest = {
    schema_version: 1,
    model_id: "m",
    version: "v",
    r2_prefix: "p",
    aggregate_sha256: "00",
    total_size_bytes: 3,
    file_count: 2,
    files: [
      { path: "a", size_bytes: 1, sha256: "aa", role: "config" },
      { path: "b", size_bytes: 2, sha256: "bb", role: "weight", gguf_header_sha256: "cc", template_sha256: "dd" },
    ],
  };

  test("is the hash of exactly this text", () => {
    const text =
      '{"files":[{"path":"a","role":"config","sha256":"aa","size_bytes":1},{"path":"b","role":"weight","sha256":"bb","size_bytes":2}],"model_id":"m","schema_version":1,"version":"v"}';
    expect(manifestSha256(manifest)).toBe(sha256(text));
  });

  test("binds name, size, role, id and version; not storage, order or extra hashes", () => {
    const own = manifestSha256(manifest);
    const [a, b] = manifest.files as [Manifest["files"][0], Manifest["files"][0]];
    const differ: Partial<Manifest>[] = [
      { model_id: "n" },
      { version: "w" },
      { files: [{ ...a, path: "c" }, b] },
      { files: [{ ...a, size_bytes: 9 }, b] },
      { files: [{ ...a, role: "other" }, b] },
      { files: [{ ...a, sha256: "ab" }, b] },
      { files: [a] },
    ];
    for (const change of differ) expect(manifestSha256({ ...manifest, ...change })).not.toBe(own);
    const { gguf_header_sha256: _, template_sha256: __, ...bare } = b;
    for (const change of [{ r2_prefix: "q" }, { files: [b, a] }, { files: [a, bare] }])
      expect(manifestSha256({ ...manifest, ...change })).toBe(own);
  });

  test("a manifest over 1 MiB is refused", () => {
    const files = Array.from({ length: 8000 }, (_, index) => ({
      path: `part-${index}.bin`,
      size_bytes: 1,
      sha256: "0".repeat(64),
      role: "weight" as const,
    }));
    expect(() => encodeManifest({ ...manifest, files, file_count: files.length }, 0)).toThrow("more than 1048576");
  });
});

test("property: the aggregate is the hash of the digests in byte order of the paths, however the list comes", () => {
  const files = fc.uniqueArray(
    fc.record({
      path: fc.string({ unit: "grapheme", minLength: 1 }),
      sha256: fc.uint8Array({ minLength: 32, maxLength: 32 }),
    }),
    { selector: (file) => file.path, maxLength: 20 },
  );
  fc.assert(
    fc.property(files, fc.infiniteStream(fc.nat()), (list, keys) => {
      const hex = list.map(({ path, sha256: bytes }) => ({ path, sha256: Buffer.from(bytes).toString("hex") }));
      const sorted = hex.toSorted((a, b) =>
        Buffer.from(a.path).toString("hex") < Buffer.from(b.path).toString("hex") ? -1 : 1,
      );
      const expected = createHash("sha256");
      for (const file of sorted) expected.update(Buffer.from(file.sha256, "hex"));
      const shuffled = hex
        .map((file) => [keys.next().value as number, file] as const)
        .sort((a, b) => a[0] - b[0])
        .map(([, file]) => file);
      expect(aggregateSha256(shuffled)).toBe(expected.digest("hex"));
    }),
  );
});

test("property: a folder gives the same manifest wherever it lies and in whatever order it was written", async () => {
  const name = fc.constantFrom("config.json", "tokenizer.json", "a.bin", "b/c.safetensors", "b/d.npz", "merges.txt");
  await fc.assert(
    fc.asyncProperty(fc.dictionary(name, fc.string(), { minKeys: 1 }), async (files) => {
      await using one = await tempDir();
      await using two = await tempDir();
      await write(one.path, files);
      await write(two.path, Object.fromEntries(Object.entries(files).toReversed()));
      const model = { id: "m", version: "v" };
      const first = encodeManifest(await folderManifest({ ...model, folder: one.path }), 0);
      expect(encodeManifest(await folderManifest({ ...model, folder: two.path }), 0)).toBe(first);
    }),
    { numRuns: 30 },
  );
});

describe("hashing a file", () => {
  test("counts every byte once and matches a plain hash", async () => {
    await using dir = await tempDir();
    const bytes = new Uint8Array(3 * 1024 * 1024 + 17).map((_, index) => index % 251);
    await write(dir.path, { file: bytes });
    const steps: number[] = [];
    const digest = await hashFile(join(dir.path, "file"), (count) => void steps.push(count));
    expect(digest).toEqual({ sizeBytes: bytes.length, sha256: sha256(bytes) });
    expect(steps.reduce((sum, step) => sum + step, 0)).toBe(bytes.length);
    expect(steps.length).toBe(4);
  });

  test("a file that changes while it is read has no hash", async () => {
    await using dir = await tempDir();
    const path = join(dir.path, "file");
    await writeFile(path, new Uint8Array(2 * 1024 * 1024));
    let touched = false;
    const hashing = hashFile(path, () => {
      if (touched) return;
      touched = true;
      require("node:fs").appendFileSync(path, "more");
    });
    expect(await rejectedFault(hashing)).toMatchObject({
      code: "io_failed",
      message: expect.stringContaining("changed while"),
    });
    expect((await readFile(path)).length).toBe(2 * 1024 * 1024 + 4);
  });

  test("progress over a folder ends at its total", async () => {
    await using dir = await tempDir();
    await write(dir.path, { "a.bin": "12345", "b.bin": "123" });
    const seen: [number, number][] = [];
    await hashFolder(dir.path, { onProgress: (done, total) => void seen.push([done, total]) });
    expect(seen).toEqual([
      [5, 8],
      [8, 8],
    ]);
  });
});
