/** Numbers the tool calls of one answer, for the stream and the whole answer alike. */
import type { ToolCallEvent } from "../../core/completion.ts";
import { Fault } from "../../core/fault.ts";

/** An answer with more calls than this is a provider gone wrong. */
const CALLS_MAX = 1_024;

export interface PlacedFragment {
  /** Position in the answer's `tool_calls`. */
  readonly index: number;
  /** Set on the first fragment of a call. */
  readonly opened: { readonly id: string; readonly name: string } | null;
  readonly arguments: string;
}

export interface ToolCallTracker {
  place(event: ToolCallEvent): PlacedFragment;
  readonly count: number;
}

/**
 * A new non-empty id on a used index starts a new call (api-billing-store §2.9). A call that comes without an id gets one,
 * since clients cannot answer a call they cannot name. Throws `provider_failed` past 1,024 calls.
 */
export const createToolCallTracker = (answerId: string): ToolCallTracker => {
  const open = new Map<number, { readonly index: number; readonly id: string }>();
  let count = 0;
  return {
    place(event) {
      const current = open.get(event.index);
      if (current !== undefined && (!event.id || event.id === current.id))
        return { index: current.index, opened: null, arguments: event.arguments ?? "" };
      if (count >= CALLS_MAX) throw new Fault("provider_failed", `the answer has more than ${CALLS_MAX} tool calls`);
      const index = count;
      const id = event.id || `call_${answerId.replace(/^chatcmpl-/, "")}_${index}`;
      count += 1;
      open.set(event.index, { index, id });
      return { index, opened: { id, name: event.name ?? "" }, arguments: event.arguments ?? "" };
    },
    get count() {
      return count;
    },
  };
};
