/** Chat completions in OpenAI's JSON: as server-sent events while they happen, or collected into one object. */
import type { CompletionEvent, CompletionTerminal, FinishReason, Usage } from "../../core/completion.ts";
import { Fault } from "../../core/fault.ts";
import { toStreamErrorBody } from "../../core/fault-render.ts";
import { MIB } from "../../core/units.ts";
import type { ChatCompletion, ChatUsage } from "./response-schema.ts";
import { createToolCallTracker, type PlacedFragment, type ToolCallTracker } from "./tool-calls.ts";

/** Characters of a whole answer kept in memory: four times what a context of a million tokens can say. */
const ANSWER_CHARS_MAX = 16 * MIB;

export interface ChatIdentity {
  /** `chatcmpl-<job id>`. */
  readonly id: string;
  /** As the consumer requested it, not the build that ran. */
  readonly model: string;
  readonly createdSec: number;
}

export interface ChatStream {
  /** SSE text for these events; empty when none of them holds anything. The first text starts with the role. */
  chunk(events: readonly CompletionEvent[]): string;
  /** Finish chunk, usage chunk if asked for, `data: [DONE]`. */
  finish(terminal: CompletionTerminal): string;
}

const toUsage = (usage: Usage): ChatUsage => ({
  prompt_tokens: usage.promptTokens,
  completion_tokens: usage.completionTokens,
  total_tokens: usage.promptTokens + usage.completionTokens,
  prompt_tokens_details: { cached_tokens: usage.cachedTokens },
  completion_tokens_details: { reasoning_tokens: usage.reasoningTokens },
});

/** The engine's reason stands, but for `stop` after tool calls: agents loop on `tool_calls`. */
const toFinishReason = (reason: FinishReason, tools: ToolCallTracker): FinishReason =>
  reason === "stop" && tools.count > 0 ? "tool_calls" : reason;

const toolDelta = ({ index, opened, arguments: text }: PlacedFragment): string =>
  JSON.stringify({
    tool_calls: [
      opened === null
        ? { index, function: { arguments: text } }
        : { index, id: opened.id, type: "function", function: { name: opened.name, arguments: text } },
    ],
  });

/** Whether a consumer would see anything of the event. */
export const isVisible = (event: CompletionEvent): boolean =>
  event.type === "tool_call" ? Boolean(event.id || event.name || event.arguments) : event.text !== "";

/**
 * The constant part of a chunk is made once and only the text is encoded per token: this runs for every token of every stream.
 * `usage` is left out of ordinary chunks rather than null (api-billing-store §2.8; OpenAI's document allows both).
 */
export const createChatStream = (identity: ChatIdentity, options: { readonly includeUsage: boolean }): ChatStream => {
  const head = JSON.stringify({
    id: identity.id,
    object: "chat.completion.chunk",
    created: identity.createdSec,
    model: identity.model,
  }).slice(0, -1);
  const before = `data: ${head},"choices":[{"index":0,"delta":`;
  const after = `,"logprobs":null,"finish_reason":null}]}\n\n`;
  const tools = createToolCallTracker(identity.id);
  let begun = false;

  const begin = (): string => {
    if (begun) return "";
    begun = true;
    return `${before}{"role":"assistant","content":""}${after}`;
  };
  const renderText = (type: "text" | "reasoning", text: string): string => {
    const encoded = JSON.stringify(text);
    const delta =
      type === "text" ? `{"content":${encoded}}` : `{"reasoning_content":${encoded},"reasoning":${encoded}}`;
    return before + delta + after;
  };

  return {
    chunk(events) {
      let out = "";
      for (let at = 0; at < events.length; at += 1) {
        const event = events[at];
        if (event === undefined || !isVisible(event)) continue;
        if (event.type === "tool_call") {
          out += before + toolDelta(tools.place(event)) + after;
          continue;
        }
        let { text } = event;
        for (let next = events[at + 1]; next?.type === event.type; next = events[at + 1]) {
          text += next.text;
          at += 1;
        }
        out += renderText(event.type, text);
      }
      return out === "" ? "" : begin() + out;
    },
    finish(terminal) {
      const reason = toFinishReason(terminal.finishReason, tools);
      const finish = `${before}{},"logprobs":null,"finish_reason":"${reason}"}]}\n\n`;
      const usage = options.includeUsage
        ? `data: ${head},"choices":[],"usage":${JSON.stringify(toUsage(terminal.usage))}}\n\n`
        : "";
      return `${begin()}${finish}${usage}data: [DONE]\n\n`;
    },
  };
};

/** One SSE event for a failure after the response has begun; `[DONE]` does not follow it. */
export const renderStreamError = (fault: Fault): string => `data: ${JSON.stringify(toStreamErrorBody(fault))}\n\n`;

export interface ChatCollector {
  /** Throws `provider_failed` when the answer outgrows 16 Mi characters. */
  add(events: readonly CompletionEvent[]): void;
  finish(terminal: CompletionTerminal): ChatCompletion;
}

interface CollectedCall {
  readonly id: string;
  readonly name: string;
  arguments: string;
}

type Message = ChatCompletion["choices"][number]["message"];

const toMessage = (text: string, reasoning: string, calls: readonly CollectedCall[]): Message => ({
  role: "assistant",
  content: text === "" && calls.length > 0 ? null : text,
  refusal: null,
  ...(reasoning === "" ? {} : { reasoning_content: reasoning, reasoning }),
  ...(calls.length === 0
    ? {}
    : {
        tool_calls: calls.map(({ id, name, arguments: text }) => ({
          id,
          type: "function" as const,
          function: { name, arguments: text },
        })),
      }),
});

export const createChatCollector = (identity: ChatIdentity): ChatCollector => {
  const tools = createToolCallTracker(identity.id);
  const calls: CollectedCall[] = [];
  let text = "";
  let reasoning = "";
  let chars = 0;

  const addFragment = ({ index, opened, arguments: piece }: PlacedFragment): void => {
    const call = calls[index];
    if (opened !== null) calls.push({ ...opened, arguments: piece });
    else if (call !== undefined) call.arguments += piece;
    chars += piece.length;
  };

  return {
    add(events) {
      for (const event of events) {
        if (!isVisible(event)) continue;
        if (event.type === "tool_call") addFragment(tools.place(event));
        else {
          if (event.type === "text") text += event.text;
          else reasoning += event.text;
          chars += event.text.length;
        }
        if (chars > ANSWER_CHARS_MAX) throw new Fault("provider_failed", "the answer is too long to be kept whole");
      }
    },
    finish: (terminal) => ({
      id: identity.id,
      object: "chat.completion",
      created: identity.createdSec,
      model: identity.model,
      choices: [
        {
          index: 0,
          message: toMessage(text, reasoning, calls),
          logprobs: null,
          finish_reason: toFinishReason(terminal.finishReason, tools),
        },
      ],
      usage: toUsage(terminal.usage),
    }),
  };
};
