/** OpenAI's chat completion request: the schema at the door, the checked form behind it, and the canonical bytes that travel sealed. */
import { z } from "zod";
import { Fault } from "../../core/fault.ts";
import { decodeJsonObject, type JsonObject } from "../json-body.ts";
import { parseOrFault } from "../schema-fault.ts";
import { chatMessageSchema, checkMessageCounts, toChatMessage, type ChatMessage } from "./messages.ts";
export { estimatePromptTokens } from "./estimate.ts";
import { chatToolSchema, toChatTool, TOOLS_MAX, type ChatTool } from "./tools.ts";

const MODEL_CHARS_MAX = 256;
const STOPS_MAX = 16;
const STOP_CHARS_MAX = 1_024;
const TOP_K_MAX = 1_000_000;
/** Seeds are 64-bit integers in OpenAI's API; as a JSON number they arrive rounded to the nearest double. */
const SEED_MAX = 2 ** 63;

const tokenCount = z
  .int({ error: "must be a non-negative integer" })
  .min(0, { error: "must be a non-negative integer" })
  .nullish();
const stopText = z
  .string()
  .min(1)
  .max(STOP_CHARS_MAX)
  .overwrite((value) => value.toWellFormed());
const ignored = z.unknown().optional().describe("Accepted and ignored.");
const only = <const V extends string | number | boolean>(value: V) =>
  z.literal(value, { error: `is not supported: leave it out or send ${JSON.stringify(value)}` }).nullish();
const absent = z.null({ error: "is not supported" }).optional();

/** OpenAI's names. What would change the answer but is not implemented is refused by name; what would not is ignored. */
export const chatRequestSchema = z.object({
  model: z.string().min(1).max(MODEL_CHARS_MAX),
  messages: z.array(chatMessageSchema).min(1),
  stream: z.boolean().nullish(),
  stream_options: z.object({ include_usage: z.boolean().nullish() }).nullish(),
  max_tokens: tokenCount,
  max_completion_tokens: tokenCount,
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  top_k: z.int().min(-1).max(TOP_K_MAX).nullish(),
  min_p: z.number().min(0).max(1).nullish(),
  seed: z
    .number()
    .min(-SEED_MAX)
    .max(SEED_MAX)
    .refine(Number.isInteger, { error: "must be an integer" })
    .meta({ type: "integer" })
    .nullish(),
  stop: z
    .union([stopText, z.array(stopText).max(STOPS_MAX)], { error: "must be a string or an array of strings" })
    .nullish(),
  ignore_eos: z.boolean().nullish(),
  tools: z.array(chatToolSchema).max(TOOLS_MAX).nullish(),
  tool_choice: z
    .enum(["auto", "none"], { error: 'must be "auto" or "none": forcing a tool call is not supported' })
    .nullish(),
  n: z.literal(1, { error: "must be 1" }).nullish(),
  response_format: z
    .object({ type: z.literal("text", { error: 'must be "text": structured output is not supported' }) })
    .nullish(),
  logprobs: only(false),
  top_logprobs: only(0),
  frequency_penalty: only(0),
  presence_penalty: only(0),
  repetition_penalty: only(1),
  logit_bias: z.strictObject({}, { error: "is not supported: leave it out or send {}" }).nullish(),
  modalities: z
    .array(z.literal("text", { error: 'must be "text"' }))
    .max(8)
    .nullish(),
  audio: absent,
  web_search_options: absent,
  functions: z.array(z.never()).max(0, { error: "is not supported: use tools" }).nullish(),
  function_call: z.literal(["auto", "none"], { error: "is not supported: use tools" }).nullish(),
  user: ignored,
  metadata: ignored,
  store: ignored,
  service_tier: ignored,
  parallel_tool_calls: ignored,
  reasoning_effort: ignored,
  verbosity: ignored,
  prediction: ignored,
  prompt_cache_key: ignored,
  safety_identifier: ignored,
});

type ParsedRequest = z.output<typeof chatRequestSchema>;

/** A checked request: only keys that mean something here, nulls left out, `stop` always a list. */
export type ChatRequest = {
  /** The name the consumer asked for. */
  readonly model: string;
  readonly messages: readonly ChatMessage[];
  readonly stream: boolean;
  readonly stream_options?: { readonly include_usage: boolean };
  /** Positive; 0 in the body means "no bound given", as in the published estimate's "first positive of". */
  readonly max_tokens?: number;
  readonly max_completion_tokens?: number;
  readonly temperature?: number;
  readonly top_p?: number;
  /** 0 = off; −1 in the body means the same. */
  readonly top_k?: number;
  readonly min_p?: number;
  readonly seed?: number;
  readonly stop?: readonly string[];
  readonly ignore_eos?: boolean;
  readonly tools?: readonly ChatTool[];
  readonly tool_choice?: "auto" | "none";
};

/** Without keys whose value is null or undefined. */
const compact = <T extends object>(value: T): { [K in keyof T]?: NonNullable<T[K]> } =>
  Object.fromEntries(Object.entries(value).filter(([, held]) => held !== null && held !== undefined)) as {
    [K in keyof T]?: NonNullable<T[K]>;
  };

const toStops = (stop: ParsedRequest["stop"]): readonly string[] | undefined => {
  if (stop === null || stop === undefined || stop.length === 0) return undefined;
  return typeof stop === "string" ? [stop] : stop;
};

const toChatRequest = (parsed: ParsedRequest): ChatRequest => ({
  model: parsed.model.toWellFormed(),
  messages: parsed.messages.map(toChatMessage),
  stream: parsed.stream ?? false,
  ...compact({
    stream_options: parsed.stream_options ? { include_usage: parsed.stream_options.include_usage ?? false } : undefined,
    max_tokens: parsed.max_tokens || undefined,
    max_completion_tokens: parsed.max_completion_tokens || undefined,
    temperature: parsed.temperature,
    top_p: parsed.top_p,
    top_k: parsed.top_k === -1 ? 0 : parsed.top_k,
    min_p: parsed.min_p,
    seed: parsed.seed,
    stop: toStops(parsed.stop),
    ignore_eos: parsed.ignore_eos,
    tools: parsed.tools?.length ? parsed.tools.map(toChatTool) : undefined,
    tool_choice: parsed.tool_choice,
  }),
});

const refuse = (message: string, param: string): Fault => new Fault("bad_request", message, { param });

/** The checks whose order and texts are published (api-billing-store §2.1), before the schema sees anything. */
const checkEssentials = (body: JsonObject): void => {
  const { model, messages, n } = body;
  if (model === undefined || model === null || model === "") throw refuse("model is required", "model");
  if (messages === undefined || messages === null) throw refuse("messages or input is required", "messages");
  if (Array.isArray(messages) && messages.length === 0) throw refuse("messages or input is required", "messages");
  if (typeof n === "number" && n > 1) throw refuse("n > 1 is not supported", "n");
  if (Array.isArray(messages)) checkMessageCounts(messages);
  for (const param of ["tools", "stop", "modalities", "functions"]) {
    const list = body[param];
    if (Array.isArray(list) && list.length > TOOLS_MAX)
      throw refuse(`${param} must have at most ${TOOLS_MAX} items`, param);
  }
};

const checkToolNames = (tools: readonly ChatTool[]): void => {
  const seen = new Set<string>();
  for (const [index, tool] of tools.entries()) {
    if (seen.has(tool.function.name))
      throw refuse(`tools[${index}].function.name is used twice`, `tools[${index}].function.name`);
    seen.add(tool.function.name);
  }
};

/**
 * A request body as a consumer sent it. Throws `bad_request` (400) or `unsupported_media` (415) with `param` set; the message
 * never quotes the body. Order: JSON, model, messages, n, the rest.
 */
export const decodeChatRequest = (body: Uint8Array): ChatRequest => {
  const value = decodeJsonObject(body);
  checkEssentials(value);
  const request = toChatRequest(parseOrFault(chatRequestSchema, value));
  checkToolNames(request.tools ?? []);
  return request;
};

/** The request that travels sealed to a provider: the checked form as UTF-8 JSON. Decoding it gives the same request. */
export const encodeCanonicalChat = (request: ChatRequest): Uint8Array =>
  new TextEncoder().encode(JSON.stringify(request));

/** The same checks on the provider's side, where the fault says nothing about the content. */
export const decodeCanonicalChat = (bytes: Uint8Array): ChatRequest => {
  try {
    return decodeChatRequest(bytes);
  } catch (thrown) {
    if (thrown instanceof Fault) throw new Fault("bad_request", "the request is not a valid chat request");
    throw thrown;
  }
};

/** The bound the consumer asked for; the newer name wins. Absent = none asked. */
export const tokensMaxOf = (request: ChatRequest): number | undefined =>
  request.max_completion_tokens ?? request.max_tokens;
