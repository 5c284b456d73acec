/** The tools of a chat request: function tools whose parameter schemas are bounded before anything native sees them. */
import { z } from "zod";
import { KIB } from "../../core/units.ts";
import type { Json, JsonObject } from "../json-body.ts";

export const TOOLS_MAX = 128;
/** A consumer's schema is hostile input: upstream's converter overflows its stack on deep ones (engine.md). */
export const TOOL_SCHEMA_DEPTH_MAX = 64;
export const TOOL_SCHEMA_BYTES_MAX = 256 * KIB;
const DESCRIPTION_CHARS_MAX = 64 * KIB;

export type ChatTool = {
  readonly type: "function";
  readonly function: {
    readonly name: string;
    readonly description?: string;
    readonly parameters: JsonObject;
    readonly strict?: boolean;
  };
};

/** Why a schema is refused, or null. Recursion is safe: it stops at the depth bound. */
const findProblem = (value: Json, depth: number): string | null => {
  if (typeof value === "string") return value.isWellFormed() ? null : "holds text that is not Unicode";
  if (typeof value === "number") return Number.isFinite(value) ? null : "holds a number that is too large";
  if (typeof value !== "object" || value === null) return null;
  if (depth >= TOOL_SCHEMA_DEPTH_MAX) return `is nested deeper than ${TOOL_SCHEMA_DEPTH_MAX} levels`;
  for (const [key, child] of Object.entries(value)) {
    const problem = key.isWellFormed() ? findProblem(child, depth + 1) : "holds text that is not Unicode";
    if (problem !== null) return problem;
  }
  return null;
};

const parametersSchema = z.record(z.string(), z.unknown()).superRefine((value, context) => {
  const problem =
    findProblem(value as JsonObject, 0) ??
    (Buffer.byteLength(JSON.stringify(value)) > TOOL_SCHEMA_BYTES_MAX
      ? `is larger than ${TOOL_SCHEMA_BYTES_MAX} bytes`
      : null);
  if (problem !== null) context.addIssue({ code: "custom", message: problem });
});

export const chatToolSchema = z.object({
  type: z.literal("function", { error: 'must be "function": other tools are not supported' }),
  function: z.object({
    name: z.string().regex(/^[a-zA-Z0-9_.-]{1,128}$/, { error: "must be 1 to 128 characters of a-z A-Z 0-9 _ . -" }),
    description: z
      .string()
      .max(DESCRIPTION_CHARS_MAX)
      .overwrite((value) => value.toWellFormed())
      .nullish(),
    parameters: parametersSchema.nullish(),
    strict: z.boolean().nullish(),
  }),
});

/** A function without parameters takes none (OpenAI's rule). */
const NO_PARAMETERS: JsonObject = { type: "object", properties: {} };

export const toChatTool = ({ function: given }: z.output<typeof chatToolSchema>): ChatTool => ({
  type: "function",
  function: {
    name: given.name,
    ...(given.description ? { description: given.description } : {}),
    parameters: (given.parameters as JsonObject | null | undefined) ?? NO_PARAMETERS,
    ...(given.strict === null || given.strict === undefined ? {} : { strict: given.strict }),
  },
});
