/** A model with everything that runs it: context, templates, pieces; opened and checked inside the worker. */
import { Batch, StepRows } from "../../ffi/batch.ts";
import { ChatTemplates, type ChatPrompt } from "../../ffi/chat.ts";
import { Context, SEQUENCES_MAX } from "../../ffi/context.ts";
import { Model, type RecommendedSampling } from "../../ffi/model.ts";
import { openNative } from "../../ffi/native.ts";
import { SamplerChain } from "../../ffi/sampler.ts";
import { Fault } from "../core/fault.ts";
import { FILE_TYPES } from "../models/gguf-types.ts";
import type { EngineModel, Json } from "./engine.ts";
import { PieceTexts } from "./piece-texts.ts";
import { defaultContextTokens, type OpenSpec, type PromptRequest } from "./worker-protocol.ts";

/** One step is one micro batch: larger steps would gain little and hold up a cancel or a new request. */
const BATCH_TOKENS = 512;

export interface RenderedPrompt {
  readonly chat: ChatPrompt;
  readonly tokens: Int32Array;
}

export class LoadedModel implements Disposable {
  readonly facts: EngineModel;
  readonly model: Model;
  readonly context: Context;
  readonly pieces: PieceTexts;
  readonly recommended: RecommendedSampling;
  readonly #templates: ChatTemplates;

  /** Throws `memory_short`, `model_invalid`, `native_failed` or `native_missing`. */
  constructor(spec: OpenSpec, onProgress: (fraction: number) => void) {
    const gpu = spec.gpuLayers === null ? {} : { gpuLayers: spec.gpuLayers };
    const model = Model.open(openNative(spec.location), spec.modelPath, { ...gpu, onProgress });
    try {
      if (!model.hasDecoder || model.hasEncoder)
        throw new Fault("model_invalid", "the model is no text generator", { reason: "not_generative" });
      this.model = model;
      this.recommended = model.recommendedSampling();
      this.pieces = new PieceTexts(model);
      const contextTokens = rowContext(spec, model);
      this.context = openContext(model, spec, contextTokens);
      this.#templates = ChatTemplates.open(model);
      this.#selfTest();
      this.facts = this.#describe(spec, contextTokens);
    } catch (error) {
      model[Symbol.dispose]();
      throw error;
    }
  }

  /** Throws `bad_request` (shape, or reason `request_exceeds_context`) and `template_failed`. */
  render(request: PromptRequest): RenderedPrompt {
    const { messages, tools, toolChoice } = request;
    const chat = this.#templates.apply({
      messages,
      ...(tools === undefined ? {} : { tools }),
      ...(toolChoice === undefined ? {} : { toolChoice }),
    });
    const { contextTokens } = this.facts;
    return { chat, tokens: this.model.tokenize(chat.prompt, { special: true, tokensMax: contextTokens }) };
  }

  [Symbol.dispose](): void {
    this.model[Symbol.dispose]();
  }

  /** One token, so that what cannot compute fails at load and not at the first request. */
  #selfTest(): void {
    const batch = new Batch(1);
    const rows = new StepRows(1);
    const out = new Int32Array(1);
    using sampler = SamplerChain.open(this.model, { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 1 });
    rows.add(batch.add(0, 0, 0, true), sampler);
    this.context.step(batch, rows, out);
    this.context.clear();
    if (out[0] === undefined || out[0] < 0)
      throw new Fault("model_invalid", "the model computes no usable token", { reason: "self_test" });
  }

  #describe(spec: OpenSpec, contextTokens: number): EngineModel {
    const { model } = this;
    const supportsTools = this.#templates.supportsTools;
    return {
      id: spec.id,
      contextTokens,
      rows: spec.rows,
      sizeBytes: model.sizeBytes,
      quantization: FILE_TYPES.get(Number(model.meta("general.file_type") ?? -1)) ?? null,
      architecture: model.meta("general.architecture") ?? "unknown",
      parameters: model.parameters > 0 ? model.parameters : null,
      templateRenderOk: canRender(this.#templates, supportsTools),
      toolsSupported: supportsTools,
    };
  }
}

export const exceedsContext = (model: Pick<EngineModel, "contextTokens">): Fault =>
  new Fault("bad_request", `the prompt exceeds the context of ${model.contextTokens} tokens`, {
    reason: "request_exceeds_context",
    param: "messages",
  });

const rowContext = (spec: OpenSpec, model: Model): number =>
  spec.contextTokens ?? defaultContextTokens(model.contextTrainTokens);

/** Cells for every row's whole context: an accepted request never fails for want of cache. */
const openContext = (model: Model, spec: OpenSpec, contextTokens: number): Context => {
  if (spec.rows < 1 || spec.rows > SEQUENCES_MAX)
    throw new Fault("usage", `rows must be between 1 and ${SEQUENCES_MAX}`);
  const total = contextTokens * spec.rows;
  const batchTokens = Math.max(spec.rows, Math.min(BATCH_TOKENS, total));
  return Context.open(model, {
    contextTokens: total,
    sequences: spec.rows,
    batchTokens,
    microBatchTokens: batchTokens,
    threads: spec.threads,
    threadsBatch: spec.threads,
    // A cache stream of its own per row: no row computes over another's cells, so its logits are those it has alone, to
    // the last bit (one shared stream moved them by up to 0.22), and decoding is faster.
    kvUnified: false,
  });
};

const CHECK_TOOL: Json = {
  type: "function",
  function: {
    name: "check",
    description: "A check.",
    parameters: { type: "object", properties: { text: { type: "string" } }, required: ["text"] },
  },
};
const CHECK_CALL: Json = {
  role: "assistant",
  content: null,
  tool_calls: [{ id: "call00001", type: "function", function: { name: "check", arguments: '{"text":"a"}' } }],
};
const user: Json = { role: "user", content: "a" };
const system: Json = { role: "system", content: "b" };

const PLAIN_CHECKS: readonly PromptRequest[] = [
  { messages: [user] },
  { messages: [system, user, { role: "assistant", content: "c" }, user] },
];
const TOOL_CHECK: PromptRequest = {
  messages: [user, CHECK_CALL, { role: "tool", tool_call_id: "call00001", content: "d" }],
  tools: [CHECK_TOOL],
};

/** Plain, several turns, and (where the template knows tools) a call without content with its result. */
const canRender = (templates: ChatTemplates, supportsTools: boolean): boolean => {
  try {
    for (const check of supportsTools ? [...PLAIN_CHECKS, TOOL_CHECK] : PLAIN_CHECKS) templates.apply(check);
    return true;
  } catch (error) {
    if (error instanceof Fault) return false; // what the check found out; requests will say why
    throw error;
  }
};
