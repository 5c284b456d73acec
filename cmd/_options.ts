/** Flag parsers that turn a wrong value into a usage fault which says what would be right. */
import { Fault } from "../src/core/fault.ts";

/** A commander parser for whole numbers within bounds. */
export const integerOption =
  (flag: string, min: number, max: number) =>
  (text: string): number => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (!Number.isSafeInteger(value) || value < min || value > max)
      throw new Fault("usage", `${flag} must be a whole number from ${min} to ${max}, not "${text.slice(0, 40)}"`);
    return value;
  };

/** A commander parser for comma-separated lists. */
export const listOption =
  (flag: string) =>
  (text: string): readonly string[] => {
    const items = text
      .split(",")
      .map((item) => item.trim())
      .filter((item) => item !== "");
    if (items.length === 0) throw new Fault("usage", `${flag} must be a comma-separated list`);
    return items;
  };
