/** What the fake engine answers: a plan per request, by default words that follow from the last message and the seed. */
import type { CompletionEvent, FinishReason } from "../core/completion.ts";
import type { Fault } from "../core/fault.ts";
import type { GenerateRequest, Json } from "./engine.ts";

export interface FakePlan {
  /** One event is one token. */
  readonly events: readonly CompletionEvent[];
  /** Absent = `tool_calls` when a tool call was shown, else `stop`. */
  readonly finishReason?: FinishReason;
  /** Silence between the row being held and the first token. */
  readonly delayFirstMs?: number;
  /** Silence after every token. */
  readonly delayBetweenMs?: number;
  /** One silence in the middle. */
  readonly silence?: { readonly afterTokens: number; readonly ms: number };
  /** Fails instead of making the token with this number; 0 = before the first. */
  readonly failure?: { readonly afterTokens: number; readonly fault: Fault };
  /** Starts over at the end of the events until the token bound or a cancel. */
  readonly endless?: boolean;
}

const WORDS = [
  "river", "stone", "Übung", "light", "naïve", "wind", "maple", "東京", "quiet", "bridge", "🦊", "paper",
  "harbour", "seven", "silver", "garden", "ñandú", "cloud", "letter", "window", "Ωmega", "morning", "salt", "\n",
]; // prettier-ignore

/** Tokens of the default answer. */
const DEFAULT_TOKENS = 24;

/** FNV-1a with a seed: small, and the same on every machine. */
const hashOf = (text: string, seed: number): number => {
  let hash = (0x811c9dc5 ^ seed) >>> 0;
  for (let index = 0; index < text.length; index += 1)
    hash = Math.imul(hash ^ text.charCodeAt(index), 0x01000193) >>> 0;
  return hash;
};

const isRecord = (value: Json | undefined): value is { readonly [key: string]: Json } =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const textOf = (content: Json | undefined): string => {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return "";
  const parts = content as readonly Json[];
  return parts.map((part) => (isRecord(part) && typeof part["text"] === "string" ? part["text"] : "")).join("");
};

const lastMessage = (messages: readonly Json[]): { readonly role: string; readonly text: string } => {
  const last = messages.at(-1);
  if (!isRecord(last)) return { role: "", text: "" };
  return { role: typeof last["role"] === "string" ? last["role"] : "", text: textOf(last["content"]) };
};

/** Words of all messages plus four per message: a stand-in for a template and a tokenizer. */
export const fakePromptTokens = (messages: readonly Json[]): number => {
  let tokens = 0;
  for (const message of messages) {
    const text = isRecord(message) ? textOf(message["content"]) : "";
    tokens += 4 + text.split(/\s+/).filter((word) => word !== "").length;
  }
  return tokens;
};

/** Deterministic words (some of them not ASCII) from the last message and the seed. */
export const fakeWords = (
  request: Pick<GenerateRequest, "messages" | "sampling">,
  tokens = DEFAULT_TOKENS,
): string[] => {
  const { text } = lastMessage(request.messages);
  let state = hashOf(text, request.sampling.seed ?? 0) || 1;
  return Array.from({ length: tokens }, () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return `${WORDS[(state >>> 0) % WORDS.length] ?? ""} `;
  });
};

/** The text of the default answer, for tests that compare what arrives with what was sent. */
export const fakeText = (request: Pick<GenerateRequest, "messages" | "sampling">, tokens?: number): string =>
  fakeWords(request, tokens).join("");

const toolName = (tool: Json | undefined): string | null => {
  const described = isRecord(tool) ? tool["function"] : undefined;
  return isRecord(described) && typeof described["name"] === "string" ? described["name"] : null;
};

const firstArgument = (tool: Json | undefined): string => {
  const described = isRecord(tool) ? tool["function"] : undefined;
  const parameters = isRecord(described) ? described["parameters"] : undefined;
  const properties = isRecord(parameters) ? parameters["properties"] : undefined;
  return (isRecord(properties) ? Object.keys(properties)[0] : undefined) ?? "text";
};

/** A call of the first offered tool, its arguments in pieces; the last message is the only argument. */
const toolCallEvents = (tool: Json, name: string, text: string): CompletionEvent[] => {
  const json = JSON.stringify({ [firstArgument(tool)]: text });
  const letters = Array.from(json); // by code point, so that no piece ends inside a character
  const pieces = Array.from({ length: Math.ceil(letters.length / 8) }, (_, at) =>
    letters.slice(at * 8, at * 8 + 8).join(""),
  );
  const id = `call_${hashOf(json, 1).toString(16).padStart(8, "0")}`;
  return [
    { type: "tool_call", index: 0, id, name, arguments: "" },
    ...pieces.map((piece): CompletionEvent => ({ type: "tool_call", index: 0, arguments: piece })),
  ];
};

/** A user's message with tools on offer gets a tool call; anything else gets words. */
export const defaultPlan = (request: GenerateRequest): FakePlan => {
  const last = lastMessage(request.messages);
  const tool = request.toolChoice === "none" ? undefined : request.tools?.[0];
  const name = toolName(tool);
  if (tool !== undefined && name !== null && last.role === "user")
    return { events: toolCallEvents(tool, name, last.text) };
  return { events: fakeWords(request).map((text): CompletionEvent => ({ type: "text", text })) };
};
