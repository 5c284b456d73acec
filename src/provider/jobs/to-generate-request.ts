/** Lowers a chat request of the API to what an engine runs. */
import { tokensMaxOf, type ChatRequest } from "../../dialects/chat/request.ts";
import type { GenerateRequest, SamplingOptions } from "../../engine/engine.ts";

export interface GenerateBounds {
  /** Bound that whoever relays the request set beside the consumer's own. */
  readonly tokensMax?: number;
}

const toSampling = (request: ChatRequest): SamplingOptions => ({
  ...(request.temperature === undefined ? {} : { temperature: request.temperature }),
  ...(request.top_p === undefined ? {} : { topP: request.top_p }),
  ...(request.top_k === undefined ? {} : { topK: request.top_k }),
  ...(request.min_p === undefined ? {} : { minP: request.min_p }),
  ...(request.seed === undefined ? {} : { seed: request.seed }),
});

/** The smaller of two bounds of which either may be absent. */
const smaller = (first: number | undefined, second: number | undefined): number | undefined =>
  first === undefined || second === undefined ? (first ?? second) : Math.min(first, second);

/** @param id attempt or job id, for stats and logs */
export const toGenerateRequest = (id: string, request: ChatRequest, bounds: GenerateBounds = {}): GenerateRequest => {
  const tokensMax = smaller(tokensMaxOf(request), bounds.tokensMax);
  return {
    id,
    messages: request.messages,
    ...(request.tools === undefined ? {} : { tools: request.tools }),
    ...(request.tool_choice === undefined ? {} : { toolChoice: request.tool_choice }),
    sampling: toSampling(request),
    stop: request.stop ?? [],
    ...(tokensMax === undefined ? {} : { tokensMax }),
    ...(request.ignore_eos === undefined ? {} : { ignoreEos: request.ignore_eos }),
  };
};
