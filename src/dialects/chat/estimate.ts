/** A cheap guess at prompt tokens for deadlines and placement; never for money. */
import type { ChatMessage, MessageContent } from "./messages.ts";
import type { ChatRequest } from "./request.ts";

/** What a role, its markers and the line between messages cost. */
const MESSAGE_TOKENS = 4;

const estimateText = (text: string): number => (text === "" ? 0 : Math.max(1, Math.floor(Buffer.byteLength(text) / 4)));

const estimateContent = (content: MessageContent | null): number => {
  if (content === null) return 0;
  if (typeof content === "string") return estimateText(content);
  return content.reduce((sum, part) => sum + estimateText(part.text), 0);
};

const estimateMessage = (message: ChatMessage): number => {
  const calls =
    message.role === "assistant" && message.tool_calls ? estimateText(JSON.stringify(message.tool_calls)) : 0;
  return MESSAGE_TOKENS + estimateContent(message.content) + calls;
};

/**
 * Tokens, by the published rule (api-billing-store §2.3): 4 per message plus a quarter of the UTF-8 bytes of each text,
 * rounded down, at least 1. Tool definitions and earlier tool calls count too (a quarter of their JSON), because templates print them.
 */
export const estimatePromptTokens = (request: Pick<ChatRequest, "messages" | "tools">): number =>
  request.messages.reduce((sum, message) => sum + estimateMessage(message), 0) +
  (request.tools ? estimateText(JSON.stringify(request.tools)) : 0);
