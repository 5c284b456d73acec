/** Thousands of damaged headers: the checker answers each with a header or a Fault, quickly and in bounded memory. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { Fault } from "../../src/core/fault.ts";
import { checkGguf } from "../../src/models/gguf-check.ts";
import { readGgufHeader } from "../../src/models/gguf.ts";
import { tempDir } from "../support/temp-dir.ts";

const DEMO = join(import.meta.dir, "../../assets/demo-model/darkbloom-demo-q8_0.gguf");
/** Set to a printed seed to see a failure again. */
const SEED: number | null = null;
const CASES_PER_CLASS = 700;
const CASE_MS_MAX = 2000;
const GROWTH_BYTES_MAX = 200 * 1024 * 1024;

type Random = (below: number) => number;

/** Mulberry32: small, seeded, good enough to choose places. */
const seeded = (seed: number): Random => {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below);
  };
};

interface Mutant {
  readonly header: Uint8Array;
  readonly fileBytes: number;
}

const HUGE = [0n, 1n, 0x7fn, 0xffn, 0xffff_ffffn, 0x1_0000_0000n, 2n ** 53n, 2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 1n];

/** Places that look like a 64-bit length or count: a small number and zeros. */
const countPlaces = (header: Uint8Array): number[] => {
  const view = new DataView(header.buffer, header.byteOffset, header.byteLength);
  const places: number[] = [];
  for (let at = 8; at + 8 <= header.length; at += 1) {
    const value = view.getBigUint64(at, true);
    if (value > 0n && value < 0x10000n) places.push(at);
  }
  return places;
};

test("no damaged header does more than raise a Fault", async () => {
  const seed = SEED ?? Math.floor(Math.random() * 2 ** 32);
  const random = seeded(seed);
  const demo = await readGgufHeader(DEMO);
  const original = new Uint8Array(readFileSync(DEMO).subarray(0, demo.dataOffset));
  const places = countPlaces(original);
  const whole = (header: Uint8Array): Mutant => ({ header, fileBytes: demo.fileSizeBytes });
  const changed = (change: (header: Uint8Array, view: DataView) => void): Mutant => {
    const header = original.slice();
    change(header, new DataView(header.buffer));
    return whole(header);
  };
  const mutations: Record<string, () => Mutant> = {
    flip: () =>
      changed((header) => {
        for (let count = 1 + random(3); count > 0; count -= 1) {
          const at = random(header.length);
          header[at] = (header[at] ?? 0) ^ (1 << random(8));
        }
      }),
    truncate: () => {
      const length = random(original.length);
      return { header: original.subarray(0, length), fileBytes: length };
    },
    splice: () => {
      const from = random(original.length);
      const length = random(200);
      const to = random(original.length);
      return whole(
        Buffer.concat([original.subarray(0, to), original.subarray(from, from + length), original.subarray(to)]),
      );
    },
    huge: () =>
      changed((_, view) => view.setBigUint64(places[random(places.length)]!, HUGE[random(HUGE.length)]!, true)),
    retype: () => changed((_, view) => view.setUint32(places[random(places.length)]!, random(50), true)),
  };

  await using dir = await tempDir();
  const path = join(dir.path, "mutant.gguf");
  const file = await open(path, "w");
  const rssBefore = process.memoryUsage.rss();
  const lines: string[] = [];
  let acceptedAll = 0;
  for (const [name, mutate] of Object.entries(mutations)) {
    const counts = { accepted: 0, rejected: 0 };
    for (let index = 0; index < CASES_PER_CLASS; index += 1) {
      const { header, fileBytes } = mutate();
      await file.truncate(0);
      await file.write(header, 0, header.length, 0);
      await file.truncate(fileBytes);
      const startMs = performance.now();
      try {
        await checkGguf(path);
        counts.accepted += 1;
      } catch (thrown) {
        const expected = thrown instanceof Fault && thrown.code === "model_invalid";
        if (!expected) throw new Error(`seed ${seed}, ${name} ${index}`, { cause: thrown });
        counts.rejected += 1;
      }
      expect(performance.now() - startMs).toBeLessThan(CASE_MS_MAX);
    }
    lines.push(`${name} accepted=${counts.accepted} rejected=${counts.rejected}`);
    expect(counts.rejected).toBeGreaterThan(0);
    acceptedAll += counts.accepted;
  }
  await file.close();
  console.log(`gguf fuzz seed=${seed}: ${lines.join(", ")}`);
  expect(acceptedAll).toBeGreaterThan(0);
  Bun.gc(true);
  expect(process.memoryUsage.rss() - rssBefore).toBeLessThan(GROWTH_BYTES_MAX);
}, 120_000);
