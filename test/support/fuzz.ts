/** Mutations of valid input for fuzzing at the doors, from a printed seed, with a tally per class of mutation. */

/** Small seeded generator (mulberry32); the same seed gives the same run. */
export interface Dice {
  /** Whole number in [0, below). */
  below(below: number): number;
  pick<T>(items: readonly T[]): T;
}

export const createDice = (seed: number): Dice => {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  const below = (bound: number): number => Math.floor(next() * bound);
  return { below, pick: (items) => items[below(items.length)]! };
};

/** `DARKBLOOM_TEST_SEED` repeats a run; else a fresh seed each time. */
export const fuzzSeed = (): number =>
  Number(process.env["DARKBLOOM_TEST_SEED"] ?? crypto.getRandomValues(new Uint32Array(1))[0]);

export type Mutation = "flip" | "truncate" | "splice" | "retype" | "huge";
export const MUTATIONS: readonly Mutation[] = ["flip", "truncate", "splice", "retype", "huge"];

export const flipBit = (dice: Dice, bytes: Uint8Array): Uint8Array => {
  const copy = Uint8Array.from(bytes);
  const at = dice.below(copy.length);
  copy[at] = copy[at]! ^ (1 << dice.below(8));
  return copy;
};

export const truncateBytes = (dice: Dice, bytes: Uint8Array): Uint8Array => bytes.slice(0, dice.below(bytes.length));

/** The beginning of one and the end of the other. */
export const spliceBytes = (dice: Dice, left: Uint8Array, right: Uint8Array): Uint8Array =>
  Buffer.concat([left.subarray(0, dice.below(left.length + 1)), right.subarray(dice.below(right.length + 1))]);

const STRANGERS: readonly unknown[] = [null, true, false, 0, -1, 1.5, "", "x", "\u0000", [], {}, [[]], { type: "x" }];
const GIANTS: readonly unknown[] = [
  1e308,
  -1e308,
  2 ** 53,
  2 ** 64,
  -(2 ** 31),
  5e-324,
  "x".repeat(70_000),
  Array.from({ length: 3000 }, () => ({})),
];

/** Replaces one value, anywhere in the tree, by one of another type or of an unreasonable size. */
export const mutateJson = (dice: Dice, value: unknown, kind: "retype" | "huge"): unknown => {
  if (typeof value === "object" && value !== null && dice.below(6) > 0) {
    const keys = Object.keys(value);
    if (keys.length > 0) {
      const key = dice.pick(keys);
      const child = (value as Record<string, unknown>)[key];
      const mutated = mutateJson(dice, child, kind);
      if (Array.isArray(value)) return value.map((item: unknown, index) => (String(index) === key ? mutated : item));
      return { ...value, [key]: mutated };
    }
  }
  return dice.pick(kind === "retype" ? STRANGERS : GIANTS);
};

/** Text mutated by bytes or by structure; `other` is what `splice` mixes in. */
export const mutateText = (dice: Dice, kind: Mutation, text: string, other: string): string => {
  const encode = (part: string): Uint8Array => new TextEncoder().encode(part);
  const decode = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
  switch (kind) {
    case "flip":
      return decode(flipBit(dice, encode(text)));
    case "truncate":
      return decode(truncateBytes(dice, encode(text)));
    case "splice":
      // Half by bytes, half by fields, so that some stay JSON.
      return dice.below(2) === 0
        ? decode(spliceBytes(dice, encode(text), encode(other)))
        : JSON.stringify({ ...(JSON.parse(other) as object), ...(JSON.parse(text) as object) });
    case "retype":
    case "huge":
      return JSON.stringify(mutateJson(dice, JSON.parse(text), kind));
  }
};

/** Counts of outcomes per class; a class that never occurred is a hole in the test. */
export class Tally {
  readonly #counts = new Map<string, Map<string, number>>();

  add(kind: string, outcome: string): void {
    const outcomes = this.#counts.get(kind) ?? new Map<string, number>();
    outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
    this.#counts.set(kind, outcomes);
  }

  count(kind: string, outcome: string): number {
    return this.#counts.get(kind)?.get(outcome) ?? 0;
  }

  total(outcome: string): number {
    return [...this.#counts.keys()].reduce((sum, kind) => sum + this.count(kind, outcome), 0);
  }

  print(title: string, seed: number): void {
    console.log(`${title}: seed ${seed}`);
    for (const [kind, outcomes] of this.#counts)
      console.log(`  ${kind.padEnd(10)}${[...outcomes].map(([outcome, count]) => ` ${outcome} ${count}`).join("")}`);
  }
}

/** Resident bytes after a collection. */
export const residentBytes = (): number => {
  Bun.gc(true);
  return process.memoryUsage().rss;
};
