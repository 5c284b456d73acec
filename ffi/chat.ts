/** The model's own chat template through upstream's chat layer: messages and tools in, everything a row needs out. */
import { Fault } from "../src/core/fault.ts";
import { MIB } from "../src/core/units.ts";
import { ChatParser, type ParserSpec } from "./chat-parser.ts";
import { isTameGrammar } from "./grammar-limits.ts";
import { Handle } from "./handle.ts";
import { checkMessages, checkTools } from "./json-limits.ts";
import type { Model } from "./model.ts";
import { toSizedText } from "./native.ts";
import type { ChatGrammar } from "./sampler.ts";

const GRAMMAR_BYTES_MAX = 1 * MIB;

/** Messages and tools in OpenAI's shape. */
export interface ChatRequest {
  readonly messages: readonly unknown[];
  readonly tools?: readonly unknown[];
  /** Absent = `auto`. With `none` the tools are shown to the model but no call is parsed. */
  readonly toolChoice?: "auto" | "none";
  /** Absent = true: the prompt ends where the assistant begins to speak. */
  readonly addGenerationPrompt?: boolean;
}

/** A rendered request. Holds prompt text: keep it out of logs. */
export interface ChatPrompt {
  /** To be tokenized with `special: true`. */
  readonly prompt: string;
  /** For the row's sampler; null when no tool call is to be shaped, or when shaping it could take without bound. */
  readonly grammar: ChatGrammar | null;
  /** Texts that end the answer besides the model's end tokens. */
  readonly additionalStops: readonly string[];
  /** Marks that the parser must see: render these tokens with `special: true`, all others without. */
  readonly preservedTokens: ReadonlySet<number>;
  /** A parser for one answer. `newToolCallId` is called for each call to which the model gave no id. */
  openParser(newToolCallId: () => string): ChatParser;
}

interface AppliedTemplate {
  readonly prompt: string;
  readonly additionalStops: readonly string[];
  readonly preservedTokens: readonly number[];
  readonly parser: ParserSpec;
  readonly grammar?: ChatGrammar;
}

/** JSON for native code; a lone surrogate, which JSON text may hold and UTF-8 not, becomes U+FFFD. */
const toJsonText = (value: unknown): string =>
  JSON.stringify(value, (_key, item: unknown) => (typeof item === "string" ? item.toWellFormed() : item));

export class ChatTemplates implements Disposable {
  /** The template renders tools and tool calls. */
  readonly supportsTools: boolean;
  readonly #model: Model;
  readonly #handle: Handle;

  private constructor(model: Model, handle: Handle) {
    this.#model = model;
    this.#handle = handle;
    const { native } = model;
    const found = native.takeJson((out) => native.symbols.db_chat_capabilities(handle.pointer, out)) as Record<
      string,
      boolean
    >;
    this.supportsTools = found["supports_tools"] === true && found["supports_tool_calls"] === true;
  }

  /** Throws `template_failed` when the model's template cannot be parsed. */
  static open(model: Model): ChatTemplates {
    const { native } = model;
    const pointer = native.openHandle((out) => native.symbols.db_chat_open(model.handle.pointer, out));
    const close = (chat: typeof pointer): void => native.check(native.symbols.db_chat_close(chat));
    return new ChatTemplates(model, new Handle("chat template", pointer, close, model.handle));
  }

  /**
   * Renders a request. Throws `bad_request` (shape, depth or size of messages and tools) or `template_failed` (reason
   * `jinja_template`: the model's template refuses this conversation). No message quotes the request.
   */
  apply(request: ChatRequest): ChatPrompt {
    checkMessages(request.messages);
    const tools = request.tools ?? [];
    checkTools(tools);
    const { native } = this.#model;
    const text = toJsonText({
      messages: request.messages,
      addGenerationPrompt: request.addGenerationPrompt !== false,
      ...(tools.length === 0 ? {} : { tools, toolChoice: request.toolChoice ?? "auto" }),
    });
    const { bytes, size } = toSizedText(text);
    const applied = native.takeJson((out) =>
      native.symbols.db_chat_apply(this.#handle.pointer, bytes, size, out),
    ) as AppliedTemplate;
    const grammar = applied.grammar ?? null;
    if (grammar !== null && Buffer.byteLength(grammar.text) > GRAMMAR_BYTES_MAX)
      throw new Fault("bad_request", "the tools make too large a grammar", { param: "tools", reason: "too_complex" });
    return {
      prompt: applied.prompt,
      grammar: grammar !== null && isTameGrammar(grammar.text, tools) ? grammar : null,
      additionalStops: applied.additionalStops,
      preservedTokens: new Set(applied.preservedTokens),
      openParser: (newToolCallId) => ChatParser.open(native, applied.parser, newToolCallId),
    };
  }

  get disposed(): boolean {
    return this.#handle.disposed;
  }

  [Symbol.dispose](): void {
    this.#handle[Symbol.dispose]();
  }
}
