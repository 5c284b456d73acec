/** The shell around one provider session: performs its effects, hands data frames to attempts, keeps the registry in step. */
import { Fault, toFault } from "../../core/fault.ts";
import { errorFields } from "../../core/log.ts";
import { CONTROL_FRAME_BYTES_MAX, DATA_FRAME_BYTES_MAX_COORDINATOR } from "../../core/limits.ts";
import type { TrustLevel } from "../../core/trust.ts";
import { CLOSE_CODES } from "../../protocol/close-codes.ts";
import { decodeFrame, type Frame } from "../../protocol/frames.ts";
import { decodeProviderMessage, encodeMessage } from "../../protocol/messages.ts";
import { TIMERS } from "../../protocol/timers.ts";
import { providerIdOf } from "../../trust/provider-id.ts";
import { verifyStatement } from "../../trust/statements.ts";
import { signWelcome } from "../../trust/welcome.ts";
import { ConnectedProvider, type ProviderLink } from "../routing/connected-provider.ts";
import { toAttemptFault } from "../routing/retry.ts";
import { recordProvider, toIdentity, toStanding } from "./admission.ts";
import { Outbox, type SendingSocket } from "./outbox.ts";
import {
  openSession,
  stepSession,
  takesData,
  type Registration,
  type Session,
  type SessionEffect,
  type SessionEvent,
  type Verdict,
} from "./session.ts";
import type { SessionDeps } from "./session-deps.ts";

/** The part of Bun's ServerWebSocket that a connection needs. */
export interface ProviderSocket extends SendingSocket {
  close(code?: number, reason?: string): void;
  terminate(): void;
  ping(): void;
}

/** What the upgrade found out. */
export interface ConnectionTicket {
  /** Join token id; null for an anonymous provider. */
  readonly tokenId: string | null;
  /** Model ids the join token allows; null = any. */
  readonly models: readonly string[] | null;
}

/** How long a provider waits when its record could not be written. */
const ADMIT_RETRY_MS = 5_000;

const disconnected = (): Fault =>
  new Fault("provider_failed", "provider disconnected", { reason: "provider_disconnect" });

export class ProviderConnection {
  readonly #deps: SessionDeps;
  readonly #socket: ProviderSocket;
  readonly #ticket: ConnectionTicket;
  readonly #outbox: Outbox;
  readonly #id: string;
  readonly #resumeToken: string;
  #session: Session;
  #provider: ConnectedProvider | null = null;
  #registration: Registration | null = null;
  #seenAtMs: number;
  #pingAtMs: number;
  #awaitsIdle = false;
  #gone = false;
  #lateFrames = 0;

  constructor(deps: SessionDeps, socket: ProviderSocket, ticket: ConnectionTicket) {
    this.#deps = deps;
    this.#socket = socket;
    this.#ticket = ticket;
    this.#outbox = new Outbox(socket, () => this.#hangUp(CLOSE_CODES.policy, "the peer does not read"));
    this.#id = deps.ids.entityId("conn");
    this.#resumeToken = deps.ids.secret("rt");
    const nowMs = deps.clock.monotonicMs();
    this.#session = openSession(nowMs, TIMERS.registerMs);
    this.#seenAtMs = nowMs;
    this.#pingAtMs = nowMs + deps.options.pingMs;
  }

  get id(): string {
    return this.#id;
  }

  get phase(): Session["phase"] {
    return this.#session.phase;
  }

  /** Data frames and messages that came for attempts already over. */
  get lateFrames(): number {
    return this.#lateFrames;
  }

  onText(text: string): void {
    this.onPong();
    try {
      const decoded = decodeProviderMessage(text);
      this.#step(
        decoded.ok
          ? { type: "message", message: decoded.message }
          : { type: "unsupported", messageType: decoded.unsupported },
      );
    } catch (thrown) {
      this.#breach(thrown);
    }
  }

  onBinary(bytes: Uint8Array): void {
    this.onPong();
    try {
      if (!takesData(this.#session)) throw new Fault("protocol_error", "a data frame before verification");
      const frame = decodeFrame(bytes);
      const attempt = this.#provider?.attempts.get(frame.attemptId);
      if (attempt === undefined) this.#lateFrames += 1;
      else this.#deliver(attempt, frame);
    } catch (thrown) {
      this.#breach(thrown);
    }
  }

  onPong(): void {
    this.#seenAtMs = this.#deps.clock.monotonicMs();
  }

  /** The socket is closed, whoever closed it. */
  onClose(code: number): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#step({ type: "gone" });
    this.#leave();
    this.#deps.memory.startResumeTime(this.#resumeToken, TIMERS.resumeTokenMs);
    this.#deps.log.info("provider_disconnected", {
      connection: this.#id,
      provider: this.#provider?.id,
      code,
      lateFrames: this.#lateFrames,
    });
  }

  /** Called about once a second. */
  tick(): void {
    const nowMs = this.#deps.clock.monotonicMs();
    if (nowMs >= this.#pingAtMs) {
      this.#pingAtMs = nowMs + this.#deps.options.pingMs;
      this.#socket.ping();
    }
    this.#step({ type: "tick", seenAtMs: this.#seenAtMs });
  }

  /** Ends the connection from this side. */
  /** Join token id it came in on; null when anonymous. */
  get tokenId(): string | null {
    return this.#ticket.tokenId;
  }

  close(code: number, reason: string): void {
    this.#step({ type: "gone" });
    this.#hangUp(code, reason);
  }

  #step(event: SessionEvent): void {
    const { clock, options, random } = this.#deps;
    const [next, effects] = stepSession(this.#session, event, {
      nowMs: clock.monotonicMs(),
      wallMs: clock.nowMs(),
      nonce: () => Buffer.from(random.bytes(32)).toString("base64"),
      options,
    });
    this.#session = next;
    for (const effect of effects) this.#perform(effect);
  }

  #perform(effect: SessionEffect): void {
    switch (effect.type) {
      case "send":
        return this.#outbox.sendText(encodeMessage(effect.message));
      case "welcome":
        return this.#welcome(effect.nonce);
      case "verify":
        return this.#verify(effect);
      case "admit":
        return this.#admit(effect);
      case "renew":
        return this.#renew(effect.trustLevel, effect.kPublic);
      case "serve":
        return this.#serve(effect.serving);
      case "end_attempts":
        return this.#cancelAttempts(new Fault("provider_failed", "the provider is not trusted any more"));
      case "quarantine":
        if (this.#registration !== null) this.#deps.memory.quarantine(this.#registration.identity_key, effect.ms);
        return;
      case "capacity":
        this.#provider?.report(effect.heartbeat.backend_capacity);
        return this.#deps.registry.changed();
      case "attempt":
        return this.#control(effect.message);
      case "await_idle":
        this.#awaitsIdle = true;
        return this.#checkIdle();
      case "close":
        return this.#hangUp(effect.code, effect.reason);
      case "terminate":
        this.#deps.log.warn("provider_silent", { connection: this.#id, provider: this.#provider?.id });
        this.#leave();
        return this.#socket.terminate();
    }
  }

  #welcome(nonce: string): void {
    if (this.#session.phase !== "challenged") return;
    const { registration } = this.#session;
    this.#registration = registration;
    const fields = {
      connection_id: this.#id,
      resume_token: this.#resumeToken,
      heartbeat_ms: this.#deps.options.heartbeatMs,
      nonce,
      limits: {
        control_frame_bytes_max: CONTROL_FRAME_BYTES_MAX,
        data_frame_bytes_max: DATA_FRAME_BYTES_MAX_COORDINATOR,
        attestation_reply_ms: this.#deps.options.challengeReplyMs,
      },
    };
    const audience = { identityKey: registration.identity_key, kPublic: registration.k_public };
    this.#background(async () => {
      const signature = await signWelcome(this.#deps.signer, fields, audience);
      this.#outbox.sendText(encodeMessage({ type: "welcome", ...fields, signature }));
    });
  }

  #verify(effect: Extract<SessionEffect, { type: "verify" }>): void {
    const { registration, response, nonce, first } = effect;
    this.#background(async () => {
      const result = await verifyStatement(response, {
        nonce,
        identityKey: registration.identity_key,
        expectedKPublic: first ? registration.k_public : null,
        nowMs: this.#deps.clock.nowMs(),
        expectedModels: registration.models,
      });
      const fields = { connection: this.#id, provider: providerIdOf(registration.identity_key) };
      if (result.clockSkewMs !== null)
        this.#deps.log.warn("provider_clock_skewed", { ...fields, skewMs: result.clockSkewMs });
      const { outcome, trustLevel, reason, seen, expected, statement } = result;
      const verdict: Verdict =
        outcome === "verified" && statement !== null
          ? { ok: true, trustLevel, kPublic: statement.k_public }
          : { ok: false, trustLevel, reason, seen, expected, atOnce: outcome === "untrusted" };
      if (!verdict.ok) this.#deps.log.warn("provider_statement_refused", { ...fields, reason });
      this.#step({ type: "verdict", verdict });
    });
  }

  #admit(effect: Extract<SessionEffect, { type: "admit" }>): void {
    const { registration, trustLevel, kPublic } = effect;
    const { memory, registry, clock, log } = this.#deps;
    const quarantineMs = memory.quarantineLeftMs(registration.identity_key);
    if (quarantineMs > 0)
      return this.#step({ type: "refused", code: "identity_not_allowed", retryAfterMs: Math.ceil(quarantineMs) });
    const admitted = recordProvider(this.#deps, registration, { trustLevel, allowed: this.#ticket.models });
    if (admitted === null) return this.#step({ type: "refused", code: "internal", retryAfterMs: ADMIT_RETRY_MS });
    const provider = new ConnectedProvider({
      identity: toIdentity(registration, this.#id),
      models: admitted.models,
      standing: { trustLevel, kPublic, verifiedAtMs: clock.monotonicMs() },
      link: this.#link(),
    });
    const resumed =
      registration.resume_token !== undefined && memory.resume(registration.resume_token, registration.identity_key);
    memory.keepResumeToken(this.#resumeToken, registration.identity_key);
    this.#provider = provider;
    const older = registry.add(provider);
    log.info("provider_admitted", {
      connection: this.#id,
      provider: provider.id,
      trustLevel,
      models: [...provider.models.keys()].join(","),
      refused: admitted.refused.map(({ id }) => id).join(","),
      resumed,
    });
    this.#step({ type: "admitted", standing: toStanding(trustLevel, admitted, this.#deps.options.minTrust) });
    if (older !== null) this.#deps.replace(older.identity.connectionId);
  }

  #link(): ProviderLink {
    return {
      submit: (request, frames) => {
        if (this.#gone) throw disconnected();
        this.#outbox.sendAll(encodeMessage(request), frames);
      },
      cancel: (attemptId) => this.#outbox.sendText(encodeMessage({ type: "cancel", request_id: attemptId })),
      onAttemptEnd: () => this.#checkIdle(),
    };
  }

  #renew(trustLevel: TrustLevel, kPublic: string): void {
    const provider = this.#provider;
    if (provider === null) return;
    provider.standing = { trustLevel, kPublic, verifiedAtMs: this.#deps.clock.monotonicMs() };
    this.#deps.registry.changed();
  }

  #serve(serving: boolean): void {
    if (this.#provider === null) return;
    this.#provider.serving = serving;
    this.#deps.registry.changed();
  }

  #control(message: Extract<SessionEffect, { type: "attempt" }>["message"]): void {
    const attempt = this.#provider?.attempts.get(message.request_id);
    if (attempt === undefined) this.#lateFrames += 1;
    else if (message.type === "inference_accepted") attempt.onAccepted();
    else attempt.fail(toAttemptFault(message));
  }

  /** A frame that does not open, or opens to nonsense, is no accident: sequence and tag are checked before anything is read. */
  #deliver(attempt: { onFrame(frame: Frame): void; fail(fault: Fault): void }, frame: Frame): void {
    try {
      attempt.onFrame(frame);
    } catch (thrown) {
      const cause = toFault(thrown);
      if (cause.code === "internal") throw thrown;
      this.#deps.log.error("provider_data_violated", { provider: this.#provider?.id, ...errorFields(cause) });
      attempt.fail(new Fault("encryption_failed", "encrypted inference transport failed", { cause }));
      this.#step({ type: "violation" });
    }
  }

  #checkIdle(): void {
    if (this.#awaitsIdle && this.#provider?.attempts.size === 0) this.#step({ type: "idle" });
  }

  #endAttempts(fault: Fault): void {
    for (const attempt of this.#provider?.attempts.values() ?? []) attempt.fail(fault);
  }

  /** The connection lives on, so that the provider has to be told. */
  #cancelAttempts(fault: Fault): void {
    for (const attempt of this.#provider?.attempts.values() ?? []) attempt.cancel(fault);
  }

  /** Out of the registry first, so that nothing new lands here while its attempts fail and retry. */
  #leave(): void {
    const provider = this.#provider;
    if (provider === null) return;
    provider.serving = false;
    this.#deps.registry.remove(provider);
    this.#endAttempts(disconnected());
  }

  #hangUp(code: number, reason: string): void {
    this.#leave();
    this.#socket.close(code, reason);
  }

  #breach(thrown: unknown): void {
    const fault = toFault(thrown);
    this.#deps.log.warn("provider_protocol_broken", { connection: this.#id, ...errorFields(fault) });
    this.#step({ type: "malformed" });
  }

  /** Work that takes a moment; what it meets after the connection is gone does not matter any more. */
  #background(work: () => Promise<void>): void {
    work().catch((thrown: unknown) => {
      if (this.#gone) return;
      this.#deps.log.error("provider_session_failed", { connection: this.#id, ...errorFields(thrown) });
      this.close(CLOSE_CODES.internal, "internal error");
    });
  }
}
