/** What a chat completion answers, whole or in chunks; the OpenAPI document and the types come from these schemas. */
import { z } from "zod";
import { FINISH_REASONS } from "../../core/completion.ts";

const count = z.int().min(0);

export const usageSchema = z.strictObject({
  prompt_tokens: count,
  completion_tokens: count,
  total_tokens: count,
  prompt_tokens_details: z.strictObject({ cached_tokens: count }),
  completion_tokens_details: z.strictObject({ reasoning_tokens: count }),
});

const toolCallSchema = z.strictObject({
  id: z.string().min(1),
  type: z.literal("function"),
  function: z.strictObject({ name: z.string(), arguments: z.string() }),
});

const toolCallDeltaSchema = z.strictObject({
  index: count,
  id: z.string().min(1).optional(),
  type: z.literal("function").optional(),
  function: z.strictObject({ name: z.string().optional(), arguments: z.string().optional() }),
});

const head = { id: z.string().regex(/^chatcmpl-.+/), created: count, model: z.string() };

export const chatCompletionSchema = z.strictObject({
  ...head,
  object: z.literal("chat.completion"),
  choices: z
    .array(
      z.strictObject({
        index: z.literal(0),
        message: z.strictObject({
          role: z.literal("assistant"),
          content: z.string().nullable().describe("Null only when the answer is tool calls without text."),
          refusal: z.null(),
          reasoning_content: z.string().optional(),
          reasoning: z.string().optional().describe("The same text as reasoning_content."),
          tool_calls: z.array(toolCallSchema).min(1).optional(),
        }),
        logprobs: z.null(),
        finish_reason: z.enum(FINISH_REASONS),
      }),
    )
    .length(1),
  usage: usageSchema,
});

export const chatChunkSchema = z.strictObject({
  ...head,
  object: z.literal("chat.completion.chunk"),
  choices: z
    .array(
      z.strictObject({
        index: z.literal(0),
        delta: z.strictObject({
          role: z.literal("assistant").optional(),
          content: z.string().optional(),
          reasoning_content: z.string().optional(),
          reasoning: z.string().optional().describe("The same text as reasoning_content."),
          tool_calls: z.array(toolCallDeltaSchema).min(1).optional(),
        }),
        logprobs: z.null(),
        finish_reason: z.enum(FINISH_REASONS).nullable(),
      }),
    )
    .max(1)
    .describe("Empty in the usage chunk."),
  usage: usageSchema.optional().describe("In the last chunk only, and only with stream_options.include_usage."),
});

export type ChatCompletion = z.output<typeof chatCompletionSchema>;
export type ChatChunk = z.output<typeof chatChunkSchema>;
export type ChatUsage = z.output<typeof usageSchema>;
