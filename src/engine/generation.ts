/** One running answer: sampled tokens in, events and an end out. No native step happens here. */
import type { ChatParser } from "../../ffi/chat-parser.ts";
import type { CompletionEvent, FinishReason, Usage } from "../core/completion.ts";
import type { PieceTexts } from "./piece-texts.ts";
import { StopMatcher, Utf8Stream } from "./stop-matcher.ts";

export interface GenerationSpec {
  readonly promptTokens: number;
  readonly tokensMax: number;
  /** The request's stop texts and the template's own. */
  readonly stops: readonly string[];
  readonly ignoreEos: boolean;
  readonly preservedTokens: ReadonlySet<number>;
  /** Null when the answer is nothing but text. */
  readonly parser: Pick<ChatParser, "push"> | null;
  readonly pieces: PieceTexts;
  readonly isEog: (token: number) => boolean;
}

export interface GenerationStep {
  readonly events: readonly CompletionEvent[];
  /** Null while the answer goes on. */
  readonly finishReason: FinishReason | null;
}

const NO_EVENTS: readonly CompletionEvent[] = [];

export class Generation {
  readonly #spec: GenerationSpec;
  readonly #utf8 = new Utf8Stream();
  readonly #stops: StopMatcher;
  #tokens = 0;
  #reasoningTokens = 0;
  #inReasoning = false;
  #calledTool = false;

  constructor(spec: GenerationSpec) {
    this.#spec = spec;
    this.#stops = new StopMatcher(spec.stops);
  }

  get tokens(): number {
    return this.#tokens;
  }

  /**
   * Counts as llama-server does: every generated token, the end-of-turn token included. A reasoning token is one whose text
   * came out as reasoning, or that came out as nothing while reasoning went on.
   */
  get usage(): Usage {
    return {
      promptTokens: this.#spec.promptTokens,
      completionTokens: this.#tokens,
      reasoningTokens: this.#reasoningTokens,
      cachedTokens: 0,
    };
  }

  /** Throws `engine_failed` when the answer contradicts the model's own format. */
  accept(token: number): GenerationStep {
    const { isEog, ignoreEos, tokensMax, pieces, preservedTokens } = this.#spec;
    this.#tokens += 1;
    if (isEog(token) && !ignoreEos) return this.#finish("", "stop");
    const { text, stopped } = this.#stops.push(pieces.append(this.#utf8, token, preservedTokens.has(token)));
    if (stopped) return this.#finish(text, "stop");
    if (this.#tokens >= tokensMax) return this.#finish(text, "length");
    return { events: this.#toEvents(text, false), finishReason: null };
  }

  #finish(text: string, reason: "stop" | "length"): GenerationStep {
    const rest = text + this.#stopTail();
    const events = this.#toEvents(rest, true);
    return { events, finishReason: reason === "stop" && this.#calledTool ? "tool_calls" : reason };
  }

  /** What was held back for characters or stop texts that did not come; nothing once a stop text was met. */
  #stopTail(): string {
    const last = this.#stops.push(this.#utf8.flush());
    return last.text + this.#stops.flush();
  }

  #toEvents(text: string, final: boolean): readonly CompletionEvent[] {
    const { parser } = this.#spec;
    if (parser === null) return text === "" ? NO_EVENTS : [{ type: "text", text }];
    if (text === "" && !final) {
      if (this.#inReasoning) this.#reasoningTokens += 1;
      return NO_EVENTS;
    }
    const events = parser.push(text, final);
    const last = events.at(-1);
    if (last === undefined ? this.#inReasoning && !final : events.some((event) => event.type === "reasoning"))
      this.#reasoningTokens += 1;
    if (last !== undefined) this.#inReasoning = last.type === "reasoning";
    if (events.some((event) => event.type === "tool_call")) this.#calledTool = true;
    return events;
  }
}
