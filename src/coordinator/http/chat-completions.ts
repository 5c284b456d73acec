/** `POST /v1/chat/completions`: decode, check, dispatch, and answer in OpenAI's shape. */
import { decodeChatRequest, estimatePromptTokens } from "../../dialects/chat/request.ts";
import { respondChat, type RespondEnd } from "../../dialects/respond-chat.ts";
import { dispatch } from "../routing/dispatch.ts";
import { toMicros, zeroTiming, type Job } from "../routing/job.ts";
import { requireKnownModel } from "./models.ts";
import type { Call, HttpDeps, Reply } from "./route.ts";

/** Who answered and where the time went; known at commit. */
const commitHeaders = (job: Job): Record<string, string> => {
  const headers: Record<string, string> = {
    "X-Inference-Job-ID": job.id,
    "X-Timing": JSON.stringify(job.timing),
  };
  const { provider } = job;
  if (provider === null) return headers;
  return {
    ...headers,
    "X-Provider-Id": provider.id,
    "X-Provider-Attested": String(provider.trustLevel !== "none"),
    "X-Provider-Trust-Level": provider.trustLevel,
    "X-Provider-Chip": toHeaderText(provider.identity.chip),
    "X-Provider-Model": toHeaderText(provider.identity.machineModel),
    // Protocol v1 knows no unsealed request, so that whoever answers was sealed to.
    "X-Provider-Encrypted": "true",
  };
};

/** Names come from providers; a header takes visible ASCII only. */
const toHeaderText = (text: string): string => text.replaceAll(/[^\x20-\x7e]/g, "?");

const logEnd = (deps: HttpDeps, call: Call, job: Job, end: RespondEnd): void =>
  deps.log.info("job_ended", {
    job: job.id,
    key: call.key?.id,
    model: job.modelId,
    provider: job.provider?.id,
    attempts: job.attempts,
    outcome: end.fault?.code ?? "done",
    reason: end.fault?.reason,
    promptTokens: end.terminal?.usage.promptTokens,
    completionTokens: end.terminal?.usage.completionTokens,
    tookMs: Math.round(deps.clock.monotonicMs() - call.startedMs),
  });

export const createChatCompletion = async (deps: HttpDeps, call: Call): Promise<Reply> => {
  const body = await call.body();
  const parsingMs = deps.clock.monotonicMs();
  const request = decodeChatRequest(body);
  body.fill(0);
  requireKnownModel(deps, request.model);
  const abandoned = new AbortController();
  const signal = AbortSignal.any([call.signal, abandoned.signal]);
  const job: Job = {
    id: deps.ids.uuid(),
    request,
    modelId: request.model,
    promptTokens: estimatePromptTokens(request),
    startedMs: call.startedMs,
    timing: { ...zeroTiming(), parse_us: toMicros(deps.clock.monotonicMs() - parsingMs) },
    abandon: (fault) => abandoned.abort(fault),
    provider: null,
    attempts: 0,
  };
  const release = call.hold();
  const response = await respondChat({
    clock: deps.clock,
    request,
    jobId: job.id,
    outputs: dispatch(deps.dispatch, job, signal),
    keepAliveMs: deps.options.keepAliveMs,
    headers: () => commitHeaders(job),
    signal,
    onEnd: (end) => {
      release();
      logEnd(deps, call, job, end);
    },
  });
  return { type: "response", response };
};
