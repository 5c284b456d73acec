/** Reads a whole completion into one value, checking the order of its parts on the way. */
import type { CompletionStream, CompletionTerminal } from "../../src/core/completion.ts";
import type { Engine, GenerateRequest } from "../../src/engine/engine.ts";

export interface CollectedToolCall {
  id: string;
  name: string;
  arguments: string;
}

export interface Collected {
  readonly text: string;
  readonly reasoning: string;
  readonly toolCalls: readonly CollectedToolCall[];
  readonly terminal: CompletionTerminal;
  /** Outputs that carried events. */
  readonly eventOutputs: number;
}

export const chat = (text: string, options: Partial<GenerateRequest> = {}): GenerateRequest => ({
  id: "test",
  messages: [{ role: "user", content: text }],
  sampling: { temperature: 0 },
  stop: [],
  ...options,
});

/** Throws what the completion throws, and when an item comes out of order. */
export const collect = async (stream: CompletionStream): Promise<Collected> => {
  let [text, reasoning, eventOutputs, accepted] = ["", "", 0, false];
  let terminal: CompletionTerminal | null = null;
  const toolCalls: CollectedToolCall[] = [];
  for await (const output of stream) {
    if (terminal !== null) throw new Error(`${output.type} after the terminal`);
    if ((output.type === "accepted") === accepted) throw new Error(`${output.type} out of order`);
    if (output.type === "accepted") accepted = true;
    else if (output.type === "terminal") terminal = output.terminal;
    else {
      eventOutputs += 1;
      if (output.events.length === 0) throw new Error("an output without events");
      for (const event of output.events)
        if (event.type === "text") text += event.text;
        else if (event.type === "reasoning") reasoning += event.text;
        else {
          const call = (toolCalls[event.index] ??= { id: "", name: "", arguments: "" });
          call.id += event.id ?? "";
          call.name += event.name ?? "";
          call.arguments += event.arguments ?? "";
        }
    }
  }
  if (terminal === null) throw new Error("the completion ended without a terminal");
  return { text, reasoning, toolCalls, terminal, eventOutputs };
};

export const run = (
  engine: Engine,
  request: GenerateRequest,
  signal: AbortSignal = new AbortController().signal,
): Promise<Collected> => collect(engine.generate(request, signal));
