/** The messages of a chat request: OpenAI's roles and shapes at the door, one plain form behind it. */
import { z } from "zod";
import { Fault } from "../../core/fault.ts";
import type { Json, JsonObject } from "../json-body.ts";

/** Most messages of one request, and most content parts and tool calls of all of them together. */
export const MESSAGES_MAX = 8_192;
export const MESSAGE_ITEMS_MAX = 16_384;
const NAME_CHARS_MAX = 256;

export type TextPart = { readonly type: "text"; readonly text: string };
export type MessageContent = string | readonly TextPart[];
export type MessageToolCall = {
  readonly id: string;
  readonly type: "function";
  readonly function: { readonly name: string; readonly arguments: string };
};

/** `developer` has become `system`, a refusal has become text: the words model templates know. */
export type ChatMessage =
  | { readonly role: "system" | "user"; readonly content: MessageContent; readonly name?: string }
  | {
      readonly role: "assistant";
      readonly content: MessageContent | null;
      readonly name?: string;
      readonly reasoning_content?: string;
      readonly tool_calls?: readonly MessageToolCall[];
    }
  | { readonly role: "tool"; readonly content: MessageContent; readonly tool_call_id: string; readonly name?: string };

/** Unicode text. A lone surrogate (legal in JSON, fatal in UTF-8) becomes U+FFFD, as Go's decoder does. */
const unicode = z.string().overwrite((value) => value.toWellFormed());
const name = unicode.max(NAME_CHARS_MAX).nullish();
const textPart = z.object({ type: z.literal("text"), text: unicode });
const refusalPart = z.object({ type: z.literal("refusal"), refusal: unicode });
const CONTENT_TYPE = { error: "must be a string or an array of text parts" };
const content = z.union([unicode, z.array(textPart).min(1)], CONTENT_TYPE);
const assistantContent = z.union(
  [unicode, z.array(z.discriminatedUnion("type", [textPart, refusalPart])).min(1)],
  CONTENT_TYPE,
);

const toolCall = z.object({
  id: unicode.min(1).max(NAME_CHARS_MAX),
  type: z.literal("function"),
  function: z.object({
    name: unicode.min(1).max(NAME_CHARS_MAX),
    // Clients send back an empty text for a call without arguments; templates parse it as JSON.
    arguments: unicode.overwrite((text) => (text.trim() === "" ? "{}" : text)),
  }),
});

const assistantMessage = z
  .object({
    role: z.literal("assistant"),
    content: assistantContent.nullish(),
    refusal: unicode.nullish(),
    reasoning_content: unicode.nullish(),
    tool_calls: z.array(toolCall).nullish(),
    name,
  })
  .refine((message) => hasAny(message.content) || hasAny(message.refusal) || hasAny(message.tool_calls), {
    error: "is required when there are no tool_calls",
    path: ["content"],
  });

/** An empty text counts as content, an empty list of calls does not. */
const hasAny = (value: string | readonly unknown[] | null | undefined): boolean =>
  typeof value === "string" || (value ?? []).length > 0;

export const chatMessageSchema = z.discriminatedUnion("role", [
  z.object({ role: z.literal("system"), content, name }),
  z.object({ role: z.literal("developer"), content, name }),
  z.object({ role: z.literal("user"), content, name }),
  assistantMessage,
  z.object({ role: z.literal("tool"), content, tool_call_id: unicode.min(1).max(NAME_CHARS_MAX), name }),
]);

const MEDIA_KINDS: ReadonlySet<unknown> = new Set(
  "image_url input_image image video_url input_video video input_audio audio file input_file".split(" "),
);

const itemsOf = (value: Json | undefined): readonly Json[] => (Array.isArray(value) ? (value as readonly Json[]) : []);

const refuseMedia = (parts: readonly Json[], messageIndex: number): void => {
  const index = parts.findIndex((part) => MEDIA_KINDS.has((part as JsonObject | null)?.["type"]));
  if (index < 0) return;
  const param = `messages[${messageIndex}].content[${index}]`;
  throw new Fault("unsupported_media", `${param} is not text: images, audio, video and files are not supported`, {
    param,
  });
};

/** Counts before the schema runs, because zod visits every item of a list before it looks at the list's length. */
export const checkMessageCounts = (messages: readonly Json[]): void => {
  if (messages.length > MESSAGES_MAX)
    throw new Fault("bad_request", `messages must have at most ${MESSAGES_MAX} items`, { param: "messages" });
  let items = 0;
  for (const [index, message] of messages.entries()) {
    const parts = itemsOf((message as JsonObject | null)?.["content"]);
    items += parts.length + itemsOf((message as JsonObject | null)?.["tool_calls"]).length;
    if (items > MESSAGE_ITEMS_MAX)
      throw new Fault("bad_request", `messages must have at most ${MESSAGE_ITEMS_MAX} content parts and tool calls`, {
        param: "messages",
      });
    refuseMedia(parts, index);
  }
};

type ParsedMessage = z.output<typeof chatMessageSchema>;

const toAssistant = (message: Extract<ParsedMessage, { role: "assistant" }>): ChatMessage => {
  const given = message.content ?? message.refusal ?? null;
  const text = typeof given === "string" || given === null ? given : given.map(toTextPart);
  return {
    role: "assistant",
    content: text,
    ...(message.reasoning_content ? { reasoning_content: message.reasoning_content } : {}),
    ...(message.tool_calls?.length ? { tool_calls: message.tool_calls } : {}),
    ...(message.name ? { name: message.name } : {}),
  };
};

const toTextPart = (part: z.output<typeof textPart> | z.output<typeof refusalPart>): TextPart =>
  part.type === "text" ? part : { type: "text", text: part.refusal };

export const toChatMessage = (message: ParsedMessage): ChatMessage => {
  if (message.role === "assistant") return toAssistant(message);
  const named = message.name ? { name: message.name } : {};
  if (message.role === "tool")
    return { role: "tool", content: message.content, tool_call_id: message.tool_call_id, ...named };
  return { role: message.role === "user" ? "user" : "system", content: message.content, ...named };
};
