/** A machine made of samples, for hardware tests. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { SystemProbe } from "../../src/provider/hardware/system-probe.ts";

export const sample = (name: string): string => readFileSync(join(import.meta.dir, "hardware-samples", name), "utf8");

/** Answers from two tables; everything else does not exist. Commands are keyed by their words. */
export const sampleProbe = (
  platform: string,
  answers: { readonly files?: Record<string, string>; readonly commands?: Record<string, string> },
): SystemProbe => ({
  platform,
  readFile: async (path) => answers.files?.[path] ?? null,
  run: async (command, args) => answers.commands?.[[command, ...args].join(" ")] ?? null,
});
