/** Damaged copies of the demo model's header, by kind of damage. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Dice } from "../support/fuzz.ts";

export const DEMO_MODEL = join(import.meta.dir, "../../assets/demo-model/darkbloom-demo-q8_0.gguf");

export interface Mutant {
  readonly header: Uint8Array;
  /** Length of the file that has this header. */
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

/** One maker per kind of damage. `headerBytes` = where the demo model's tensor data starts. */
export const ggufMutations = (dice: Dice, headerBytes: number): Record<string, () => Mutant> => {
  const file = readFileSync(DEMO_MODEL);
  const original = new Uint8Array(file.subarray(0, headerBytes));
  const places = countPlaces(original);
  const whole = (header: Uint8Array): Mutant => ({ header, fileBytes: file.length });
  const changed = (change: (header: Uint8Array, view: DataView) => void): Mutant => {
    const header = original.slice();
    change(header, new DataView(header.buffer));
    return whole(header);
  };
  return {
    flip: () =>
      changed((header) => {
        for (let count = 1 + dice.below(3); count > 0; count -= 1) {
          const at = dice.below(header.length);
          header[at] = header[at]! ^ (1 << dice.below(8));
        }
      }),
    truncate: () => {
      const length = dice.below(original.length);
      return { header: original.subarray(0, length), fileBytes: length };
    },
    splice: () => {
      const [from, to] = [dice.below(original.length), dice.below(original.length)];
      const part = original.subarray(from, from + dice.below(200));
      return whole(Buffer.concat([original.subarray(0, to), part, original.subarray(to)]));
    },
    huge: () => changed((_, view) => view.setBigUint64(dice.pick(places), dice.pick(HUGE), true)),
    retype: () => changed((_, view) => view.setUint32(dice.pick(places), dice.below(50), true)),
  };
};
