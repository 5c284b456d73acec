/** Safe ids and versions, and the storage prefix. */
import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import * as fc from "fast-check";
import { checkModelId, checkVersion, r2Prefix, slugOf } from "../../src/models/model-name.ts";

test("the published prefix vector", () => {
  expect(r2Prefix("mlx-community/gemma-4-26b-a4b-it-8bit", "2026-05-23-r1")).toBe(
    "v2/mlx-community-gemma-4-26b-a4b-it-8bit--a69615027fc1/2026-05-23-r1",
  );
});

test("slugs", () => {
  const slugs = { "a/b": "a-b", "--x--": "x", "///": "model", "": "model", "Ünï_c.d": "n-_c.d", "a b": "a-b" };
  for (const [id, slug] of Object.entries(slugs)) expect(slugOf(id)).toBe(slug);
});

test("ids", () => {
  for (const id of ["a", "org/model-7b.Q4_K_M", "a//b", "A/b/c", ".hidden", "a/"]) expect(checkModelId(id)).toBe(id);
  for (const id of ["", "/a", "a..b", "..", "a/../b", "a b", "ä", "a\n", "a\\b", ".", "a/./b", "a:b", "x".repeat(201)])
    expect(() => checkModelId(id)).toThrow(expect.objectContaining({ code: "usage" }));
});

test("versions", () => {
  for (const version of ["2026-05-23-r1", "v1.0", "_"]) expect(checkVersion(version)).toBe(version);
  for (const version of ["", "a/b", "..", "1..2", ".", " ", "1\n", "é", "x".repeat(201)])
    expect(() => checkVersion(version)).toThrow(expect.objectContaining({ code: "usage" }));
});

test("property: a slug is never empty, has no separator, keeps its shape, and the prefix tells ids apart", () => {
  fc.assert(
    fc.property(fc.string({ unit: "grapheme" }), (id) => {
      const slug = slugOf(id);
      expect(slug).toMatch(/^(?!-)[A-Za-z0-9._-]+(?<!-)$/);
      expect(slugOf(slug)).toBe(slug);
      const digest = createHash("sha256").update(id).digest("hex").slice(0, 12);
      expect(r2Prefix(id, "v")).toBe(`v2/${slug}--${digest}/v`);
    }),
  );
});

test("property: an accepted id has no way out of its folder", () => {
  fc.assert(
    fc.property(fc.string({ unit: fc.constantFrom("a", ".", "/", "-", "\\", "\0") }), (id) => {
      let accepted = true;
      try {
        checkModelId(id);
      } catch {
        accepted = false;
      }
      if (accepted) expect(new URL(`http://h/base/${id}`).pathname.startsWith("/base/")).toBe(true);
      else expect(id === "" || /^\/|\.\.|[\\\0]|(^|\/)\.(\/|$)/.test(id)).toBe(true);
    }),
  );
});
