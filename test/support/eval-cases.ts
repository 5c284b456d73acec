/** The demo model's evaluation cases and how an answer is judged; any road to an engine must pass all of them greedily. */
import { isDeepStrictEqual } from "node:util";
import { join } from "node:path";
import type { Json } from "../../src/engine/engine.ts";

export interface EvalCase {
  readonly id: string;
  readonly skill: string;
  readonly messages: readonly Json[];
  readonly tools: readonly Json[];
  readonly check: "equals" | "contains" | "json" | "tool_call";
  readonly expect: Json;
}

/** What a consumer made of the completion. */
export interface EvalAnswer {
  readonly text: string;
  readonly toolCalls: readonly { readonly name: string; readonly arguments: string }[];
}

/** Output bound of a case, as in the recording. */
export const EVAL_TOKENS_MAX = 300;

export const loadEvalCases = async (): Promise<readonly EvalCase[]> => {
  const text = await Bun.file(join(import.meta.dir, "../../assets/demo-model/eval-cases.jsonl")).text();
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as EvalCase);
};

const parsed = (text: string): unknown => {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined; // not JSON: equals nothing that is expected
  }
};

/** Whether the answer is right, by the case's own kind of check. */
export const isRight = ({ check, expect }: EvalCase, answer: EvalAnswer): boolean => {
  const text = answer.text.trim();
  switch (check) {
    case "equals":
      return text === expect;
    case "contains":
      return (Array.isArray(expect) ? expect : [expect]).every((part) => text.includes(String(part)));
    case "json":
      return isDeepStrictEqual(parsed(text), expect);
    case "tool_call": {
      const [call] = answer.toolCalls;
      return call !== undefined && isDeepStrictEqual({ name: call.name, arguments: parsed(call.arguments) }, expect);
    }
  }
};
