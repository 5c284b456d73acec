/** The hidden verb `_probe`: what a throw-away child does for its parent. One JSON object per line on stdout. */
import { writeSync } from "node:fs";
import type { NativeLocation } from "../ffi/location.ts";
import { scoreBackends, testBackend } from "../ffi/self-test.ts";
import { tryModel } from "../ffi/try-model.ts";

/** Synchronous, so that a line is out before the next native call can kill the process. */
const print = (value: object): void => void writeSync(1, `${JSON.stringify(value)}\n`);

/** Arguments come from our own parent process; anything else is wrong usage. Returns the exit code. */
export const runProbe = async (args: readonly string[]): Promise<number> => {
  const [verb, first, second, third] = args;
  if (verb === "scores" && first !== undefined) {
    scoreBackends(first, args.slice(2), print);
    return 0;
  }
  if (verb === "backend" && first !== undefined && second !== undefined) {
    const failure = testBackend(first, second);
    print(failure === null ? { ok: true } : { ok: false, failure });
    return failure === null ? 0 : 1;
  }
  if (verb === "model" && first !== undefined && second !== undefined) {
    const report = tryModel(JSON.parse(first) as NativeLocation, second, Number(third ?? -1));
    print(report);
    return report.ok ? 0 : 1;
  }
  return 64;
};
