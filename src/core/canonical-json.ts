/** JSON with one spelling per value: sorted keys, no white space; the input of every hash over structured data. */
import { assert } from "./fault.ts";

/** What canonical JSON can say. Properties that are undefined are left out, as JSON.stringify does. */
export type CanonicalValue =
  | null
  | boolean
  | number
  | string
  | readonly CanonicalValue[]
  | { readonly [key: string]: CanonicalValue | undefined };

const DEPTH_MAX = 64;

const isList = (value: CanonicalValue): value is readonly CanonicalValue[] => Array.isArray(value);

/** Keys sort by UTF-16 code unit, as RFC 8785 does. Numbers must be finite; strings keep their code units as they are. */
export const canonicalJson = (value: CanonicalValue, depth = 0): string => {
  assert(depth <= DEPTH_MAX, "canonical JSON nests too deep");
  if (typeof value === "number") {
    assert(Number.isFinite(value), "canonical JSON has finite numbers only");
    return JSON.stringify(value);
  }
  if (value === null || typeof value === "boolean" || typeof value === "string") return JSON.stringify(value);
  if (isList(value)) return `[${value.map((item) => canonicalJson(item, depth + 1)).join(",")}]`;
  const parts: string[] = [];
  for (const key of Object.keys(value).sort()) {
    const item = value[key];
    if (item !== undefined) parts.push(`${JSON.stringify(key)}:${canonicalJson(item, depth + 1)}`);
  }
  return `{${parts.join(",")}}`;
};
