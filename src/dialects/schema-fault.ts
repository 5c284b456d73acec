/** Turns the first problem a zod schema finds into a `bad_request` Fault that names the field and never its value. */
import type { z } from "zod";
import { Fault } from "../core/fault.ts";

type Issue = z.core.$ZodIssue;
type Path = readonly PropertyKey[];

const quoted = (values: readonly unknown[]): string => values.map((value) => JSON.stringify(value)).join(", ");

const EXPECTED: Readonly<Record<string, string>> = {
  string: "must be a string",
  number: "must be a number",
  int: "must be an integer",
  boolean: "must be a boolean",
  array: "must be an array",
  object: "must be an object",
  record: "must be an object",
};

const describeSize = (issue: z.core.$ZodRawIssue, word: "at least" | "at most", bound: unknown): string => {
  if (word === "at least" && bound === 1 && issue["origin"] !== "number") return "must not be empty";
  if (issue["origin"] === "string") return `must have ${word} ${String(bound)} characters`;
  if (issue["origin"] === "array") return `must have ${word} ${String(bound)} items`;
  return `must be ${word} ${String(bound)}`;
};

/** Texts for issues whose schema brings no text of its own; zod's would do too, but some of them quote input. */
const describeIssue = (issue: z.core.$ZodRawIssue): string => {
  if (issue.input === undefined && issue.code !== "custom") return "is required";
  if (issue.code === "invalid_type") return EXPECTED[String(issue["expected"])] ?? "has the wrong type";
  if (issue.code === "too_small") return describeSize(issue, "at least", issue["minimum"]);
  if (issue.code === "too_big") return describeSize(issue, "at most", issue["maximum"]);
  if (issue.code === "invalid_value") return `must be one of ${quoted(issue["values"] ?? [])}`;
  if (issue.code === "invalid_union" && Array.isArray(issue["options"]))
    return `must be one of ${quoted(issue["options"] as unknown[])}`;
  return "is not valid";
};

/** Of a union's failed branches the one that got deepest, or at least past the type, is what the caller meant. */
const deepest = (issue: Issue, base: Path): { readonly path: Path; readonly issue: Issue } => {
  let best = { path: [...base, ...issue.path], issue };
  if (issue.code !== "invalid_union" || issue.errors.length === 0) return best;
  for (const branch of issue.errors) {
    const [first] = branch;
    if (first === undefined) continue;
    const found = deepest(first, [...base, ...issue.path]);
    const isPastType = best.issue === issue && found.issue.code !== "invalid_type";
    if (found.path.length > best.path.length || isPastType) best = { path: [...found.path], issue: found.issue };
  }
  return best;
};

/** `messages[0].content[1].text`. */
export const toParam = (path: Path): string => {
  let text = "";
  for (const key of path)
    if (typeof key === "number") text += `[${key}]`;
    else text += text === "" ? String(key) : `.${String(key)}`;
  return text;
};

/** What the schema makes of the value; throws `bad_request` with `param` set. Bounds on lengths come before this call. */
export const parseOrFault = <S extends z.ZodType>(schema: S, value: unknown): z.output<S> => {
  const result = schema.safeParse(value, { error: describeIssue });
  if (result.success) return result.data;
  const [first] = result.error.issues;
  if (first === undefined) throw new Fault("bad_request", "the request is not valid");
  const { path, issue } = deepest(first, []);
  const param = toParam(path);
  const text = issue.message === "" ? "is not valid" : issue.message;
  throw new Fault(
    "bad_request",
    param === "" ? `the request ${text}` : `${param} ${text}`,
    param === "" ? {} : { param },
  );
};
