/** Small HTTP pieces shared by the coordinator and a provider's local endpoint: bodies in, JSON and faults out. */
import { createHash, timingSafeEqual } from "node:crypto";
import { Fault } from "./fault.ts";
import { retryAfterSeconds, toHttpBody } from "./fault-render.ts";
import type { Ids } from "./ids.ts";

const tooLarge = (sizeBytesMax: number): Fault =>
  new Fault("payload_too_large", `request body exceeds the ${sizeBytesMax}-byte limit`);

/** Why the wait ended: the signal's own Fault, a deadline, or a caller that went away. */
const abortFault = (signal: AbortSignal): Fault => {
  if (signal.reason instanceof Fault) return signal.reason;
  if ((signal.reason as Error | undefined)?.name === "TimeoutError")
    return new Fault("timeout", "the request body took too long to arrive");
  return new Fault("cancelled", "the request was cancelled");
};

const concatenate = (chunks: readonly Uint8Array[], sizeBytes: number): Uint8Array => {
  const [only] = chunks;
  if (chunks.length === 1 && only !== undefined) return only;
  const whole = new Uint8Array(sizeBytes);
  let at = 0;
  for (const chunk of chunks) {
    whole.set(chunk, at);
    at += chunk.length;
  }
  return whole;
};

/**
 * The whole body, never holding more than the cap. Throws `payload_too_large` (413) from `Content-Length` alone where
 * that tells, else as soon as the cap is passed; `timeout` or `cancelled`, or the Fault the signal was aborted with.
 */
export const readBody = async (request: Request, sizeBytesMax: number, signal?: AbortSignal): Promise<Uint8Array> => {
  if (Number(request.headers.get("content-length") ?? 0) > sizeBytesMax) throw tooLarge(sizeBytesMax);
  if (signal?.aborted) throw abortFault(signal);
  if (request.body === null) return new Uint8Array();
  const reader = request.body.getReader();
  const stop = (): void => void reader.cancel().catch(() => undefined);
  signal?.addEventListener("abort", stop, { once: true });
  const chunks: Uint8Array[] = [];
  let sizeBytes = 0;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (signal?.aborted) throw abortFault(signal);
      if (done) return concatenate(chunks, sizeBytes);
      sizeBytes += value.length;
      if (sizeBytes > sizeBytesMax) throw tooLarge(sizeBytesMax);
      chunks.push(value);
    }
  } catch (thrown) {
    stop();
    if (thrown instanceof Fault) throw thrown;
    throw new Fault("cancelled", "the request body broke off", { cause: thrown });
  } finally {
    signal?.removeEventListener("abort", stop);
  }
};

export interface ResponseOptions {
  readonly status?: number;
  readonly headers?: Readonly<Record<string, string>>;
}

export const jsonResponse = (value: unknown, options: ResponseOptions = {}): Response =>
  new Response(JSON.stringify(value), {
    status: options.status ?? 200,
    headers: { ...options.headers, "content-type": "application/json" },
  });

/** The error envelope with the fault's status, and `Retry-After` where the fault names a wait. */
export const faultResponse = (fault: Fault, headers: Readonly<Record<string, string>> = {}): Response => {
  const waitSec = retryAfterSeconds(fault);
  return jsonResponse(toHttpBody(fault), {
    status: fault.status,
    headers: waitSec === null ? headers : { ...headers, "retry-after": String(waitSec) },
  });
};

/** The caller's `X-Request-ID` if it is 1 to 128 visible ASCII characters, else a fresh one. */
export const requestIdOf = (request: Request, ids: Pick<Ids, "requestId">): string => {
  const given = request.headers.get("x-request-id");
  return given !== null && /^[\x21-\x7e]{1,128}$/.test(given) ? given : ids.requestId();
};

/** No path of ours is as long; error messages repeat this much. */
const PATH_CHARS_MAX = 1_600;

/** Path of the request, cut at a bound. Throws `bad_request` for a Host header that makes no URL: anybody can send one. */
export const pathOf = (request: Request): string => {
  const url = URL.parse(request.url);
  if (url === null) throw new Fault("bad_request", "the Host header is not valid");
  return url.pathname.slice(0, PATH_CHARS_MAX);
};

/** What a path that nobody serves answers; the text is part of the API (api-billing-store §1.2). */
export const unknownEndpoint = (method: string, path: string): Fault =>
  path.startsWith("/v1/")
    ? new Fault("endpoint_unknown", `endpoint ${method} ${path} is not implemented`)
    : new Fault("not_found", "there is nothing here");

/** The token of `Authorization: Bearer <token>`; null when the header is absent or of another kind. */
export const bearerToken = (request: Request): string | null =>
  /^bearer +([\x21-\x7e]{1,4096})\s*$/i.exec(request.headers.get("authorization") ?? "")?.[1] ?? null;

/** Compares secrets in a time that tells neither their common prefix nor their lengths. */
export const constantTimeEqual = (left: string, right: string): boolean =>
  timingSafeEqual(createHash("sha256").update(left).digest(), createHash("sha256").update(right).digest());
