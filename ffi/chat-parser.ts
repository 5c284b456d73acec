/** Reads a model's answer as it grows: text, reasoning and tool calls, through upstream's parser for the model's own format. */
import { assert, Fault } from "../src/core/fault.ts";
import type { CompletionEvent, ToolCallEvent } from "../src/core/completion.ts";
import { MIB } from "../src/core/units.ts";
import { Handle } from "./handle.ts";
import { type Native, toSizedText } from "./native.ts";

/** Longest answer one parser takes; 8,192 tokens are about 40 KB. */
const ANSWER_BYTES_MAX = 16 * MIB;

/** Nodes looked at before a parser counts as more than plain text. */
const PLAIN_NODES_MAX = 16;

/** What the template says about the answer's format; made by the shim, only passed on. */
export interface ParserSpec {
  readonly format: number;
  readonly generationPrompt: string;
  readonly toolCalls: boolean;
  readonly arena: string;
}

interface ParserNode {
  readonly type: string;
  readonly children?: readonly number[];
  readonly child?: number;
  readonly tag?: string;
  readonly literal?: string;
  readonly delimiters?: readonly string[];
}

/** The nodes of a parser in reading order, as short words; a node of any other kind appears under its type. */
const toReadingOrder = (nodes: readonly ParserNode[], root: number): string[] => {
  const order: string[] = [];
  const waiting = [root];
  // A plain parser has a handful of nodes; the bound also ends a sequence that holds itself.
  for (let visited = 0; waiting.length > 0; visited += 1) {
    if (visited === PLAIN_NODES_MAX) return ["too many nodes"];
    const node = nodes[waiting.pop() ?? -1];
    if (node?.type === "sequence") waiting.push(...(node.children ?? []).toReversed());
    else if (node?.type === "literal") order.push(`literal ${node.literal}`);
    else if (node?.type === "tag" && node.tag === "content") {
      const child = nodes[node.child ?? -1];
      order.push(child?.type === "until" && child.delimiters?.length === 0 ? "rest" : "content");
    } else if (node?.type !== "epsilon" && node?.type !== "end") order.push(node?.type ?? "unknown");
  }
  return order;
};

/**
 * True when the parser reads "the generation prompt, then everything as text" and nothing else: no tool was offered and the
 * template knows no thinking. Such an answer passes unparsed, where upstream reads the whole text again for every token.
 */
export const isPlainText = (spec: ParserSpec): boolean => {
  if (spec.arena === "") return true;
  const arena = JSON.parse(spec.arena) as { readonly parsers?: readonly ParserNode[]; readonly root?: number };
  const order = toReadingOrder(arena.parsers ?? [], arena.root ?? -1).join(" | ");
  return order === "rest" || order === `literal ${spec.generationPrompt} | rest`;
};

/** One difference as the shim lists it; a tool call repeats id and name whenever either changed. */
type Difference =
  | { readonly reasoning: string }
  | { readonly text: string }
  | { readonly index: number; readonly id: string; readonly name: string; readonly arguments: string };

/** A tool call whose header (id and name) is not sent yet, because the name may still grow. */
interface PendingCall {
  id: string;
  name: string;
}

/** Makes events of differences. A call's header leaves with its first arguments, or when something else follows it. */
export class ToolCallHeaders {
  readonly #newToolCallId: () => string;
  readonly #pending = new Map<number, PendingCall>();
  readonly #sent = new Set<number>();

  constructor(newToolCallId: () => string) {
    this.#newToolCallId = newToolCallId;
  }

  toEvents(differences: readonly Difference[], final: boolean): CompletionEvent[] {
    const events: CompletionEvent[] = [];
    for (const difference of differences) {
      if ("index" in difference) this.#addCall(difference, events);
      else {
        this.#flushExcept(-1, events);
        events.push(
          "text" in difference
            ? { type: "text", text: difference.text }
            : { type: "reasoning", text: difference.reasoning },
        );
      }
    }
    if (final) this.#flushExcept(-1, events);
    return events;
  }

  #addCall(call: Extract<Difference, { index: number }>, events: CompletionEvent[]): void {
    const { index } = call;
    this.#flushExcept(index, events);
    if (!this.#sent.has(index)) {
      const pending = this.#pending.get(index) ?? { id: "", name: "" };
      if (call.id !== "") pending.id = call.id;
      if (call.name !== "") pending.name = call.name;
      this.#pending.set(index, pending);
    }
    if (call.arguments === "") return;
    const header = this.#pending.has(index) ? this.#takeHeader(index) : {};
    events.push({ type: "tool_call", index, ...header, arguments: call.arguments });
  }

  #takeHeader(index: number): Pick<ToolCallEvent, "id" | "name"> {
    const pending = this.#pending.get(index);
    assert(pending !== undefined, "a header is taken once");
    this.#pending.delete(index);
    this.#sent.add(index);
    return { id: pending.id === "" ? this.#newToolCallId() : pending.id, name: pending.name };
  }

  #flushExcept(kept: number, events: CompletionEvent[]): void {
    for (const index of this.#pending.keys())
      if (index !== kept) events.push({ type: "tool_call", index, ...this.#takeHeader(index), arguments: "" });
  }
}

export class ChatParser implements Disposable {
  readonly #native: Native;
  /** null when the answer is nothing but text and needs no parser. */
  readonly #handle: Handle | null;
  readonly #headers: ToolCallHeaders;
  #sizeBytes = 0;
  #disposed = false;

  private constructor(native: Native, handle: Handle | null, newToolCallId: () => string) {
    this.#native = native;
    this.#handle = handle;
    this.#headers = new ToolCallHeaders(newToolCallId);
  }

  static open(native: Native, spec: ParserSpec, newToolCallId: () => string): ChatParser {
    if (isPlainText(spec)) return new ChatParser(native, null, newToolCallId);
    const { bytes, size } = toSizedText(JSON.stringify(spec));
    const pointer = native.openHandle((out) => native.symbols.db_parser_open(bytes, size, out));
    const close = (parser: typeof pointer): void => native.check(native.symbols.db_parser_close(parser));
    return new ChatParser(native, new Handle("chat parser", pointer, close), newToolCallId);
  }

  /**
   * Adds the next piece of the answer (the delta, not the whole) and returns what it adds to the message. `final` says that
   * no more comes: text held back because it could have become a tool call is then released. Throws `engine_failed` (reason
   * `output_parse`) when the answer contradicts what was already sent of it.
   */
  push(delta: string, final: boolean): CompletionEvent[] {
    if (this.#disposed) throw new Fault("disposed", "this chat parser is closed");
    if (this.#handle === null) return delta === "" ? [] : [{ type: "text", text: delta }];
    const handle = this.#handle;
    const { bytes, size } = toSizedText(delta);
    this.#sizeBytes += size;
    if (this.#sizeBytes > ANSWER_BYTES_MAX)
      throw new Fault("engine_failed", "the answer is longer than a parser takes", { reason: "output_too_long" });
    const { symbols } = this.#native;
    const found = this.#native.takeJson((out) =>
      symbols.db_parser_push(handle.pointer, bytes, size, final ? 1 : 0, out),
    ) as Difference[] | null;
    return this.#headers.toEvents(found ?? [], final);
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  [Symbol.dispose](): void {
    this.#disposed = true;
    this.#handle?.[Symbol.dispose]();
  }
}
