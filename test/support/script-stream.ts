/** A completion that plays a script: outputs, failures, and waits that a test releases. */
import type {
  CompletionEvent,
  CompletionOutput,
  CompletionStream,
  CompletionTerminal,
} from "../../src/core/completion.ts";

export const ACCEPTED: CompletionOutput = { type: "accepted" };

export const text = (value: string): CompletionOutput => ({ type: "events", events: [{ type: "text", text: value }] });

export const events = (...list: readonly CompletionEvent[]): CompletionOutput => ({ type: "events", events: list });

export const terminalOf = (options: Partial<CompletionTerminal> = {}): CompletionTerminal => ({
  finishReason: "stop",
  usage: { promptTokens: 7, completionTokens: 5, reasoningTokens: 2, cachedTokens: 3 },
  timings: { queueMs: 1, prefillMs: 2, decodeMs: 3 },
  ...options,
});

export const terminal = (options: Partial<CompletionTerminal> = {}): CompletionOutput => ({
  type: "terminal",
  terminal: terminalOf(options),
});

/** An output to give, an error to throw, or a promise to wait for. */
export type ScriptLine = CompletionOutput | Error | Promise<unknown>;

export interface ScriptStream extends CompletionStream {
  /** How many outputs were asked for. */
  readonly pulls: number;
  /** How often the reader left before the end; an iteration that ran out is not counted. */
  readonly returns: number;
}

/** Never resolves: a provider that says nothing more. */
export const silence = (): Promise<never> => new Promise(() => undefined);

export const script = (lines: Iterable<ScriptLine>): ScriptStream => {
  const source = lines[Symbol.iterator]();
  const counts = { pulls: 0, returns: 0 };
  const next = async (): Promise<IteratorResult<CompletionOutput>> => {
    counts.pulls += 1;
    for (;;) {
      const { done, value } = source.next();
      if (done === true) return { done: true, value: undefined };
      if (value instanceof Error) throw value;
      if (!(value instanceof Promise)) return { done: false, value };
      await value;
    }
  };
  return {
    get pulls() {
      return counts.pulls;
    },
    get returns() {
      return counts.returns;
    },
    [Symbol.asyncIterator]: () => ({
      next,
      return: () => {
        counts.returns += 1;
        return Promise.resolve({ done: true, value: undefined });
      },
    }),
  };
};

/** The data of every event of an SSE text, parsed; `[DONE]` as the string it is. Comments are left out. */
export const sseData = (body: string): readonly unknown[] =>
  body
    .split("\n\n")
    .filter((event) => event.startsWith("data: "))
    .map((event) => (event === "data: [DONE]" ? "[DONE]" : (JSON.parse(event.slice(6)) as unknown)));
