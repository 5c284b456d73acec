/** Thousands of damaged headers: the checker answers each with a header or a Fault, quickly and in bounded memory. */
import { expect, test } from "bun:test";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { Fault } from "../../src/core/fault.ts";
import { checkGguf } from "../../src/models/gguf-check.ts";
import { readGgufHeader } from "../../src/models/gguf.ts";
import { createDice, fuzzSeed, residentBytes, Tally } from "../support/fuzz.ts";
import { tempDir } from "../support/temp-dir.ts";
import { DEMO_MODEL, ggufMutations } from "./gguf-mutants.ts";

const CASES_PER_CLASS = 700;
const CASE_MS_MAX = 2000;
const GROWTH_BYTES_MAX = 200 * 1024 * 1024;

test("no damaged header does more than raise a Fault", async () => {
  const seed = fuzzSeed();
  const tally = new Tally();
  const mutations = ggufMutations(createDice(seed), (await readGgufHeader(DEMO_MODEL)).dataOffset);
  await using dir = await tempDir();
  const path = join(dir.path, "mutant.gguf");
  await using file = await open(path, "w");
  const residentBefore = residentBytes();
  for (const [kind, mutate] of Object.entries(mutations))
    for (let index = 0; index < CASES_PER_CLASS; index += 1) {
      const { header, fileBytes } = mutate();
      await file.truncate(0);
      await file.write(header, 0, header.length, 0);
      await file.truncate(fileBytes);
      const startMs = performance.now();
      try {
        await checkGguf(path);
        tally.add(kind, "accepted");
      } catch (thrown) {
        if (!(thrown instanceof Fault && thrown.code === "model_invalid"))
          throw new Error(`seed ${seed}: ${kind} ${index}`, { cause: thrown });
        tally.add(kind, "rejected");
      }
      expect(performance.now() - startMs).toBeLessThan(CASE_MS_MAX);
    }
  tally.print("gguf header", seed);
  for (const kind of Object.keys(mutations)) expect(tally.count(kind, "rejected")).toBeGreaterThan(0);
  expect(tally.count("flip", "accepted")).toBeGreaterThan(0);
  expect(residentBytes() - residentBefore).toBeLessThan(GROWTH_BYTES_MAX);
}, 120_000);
