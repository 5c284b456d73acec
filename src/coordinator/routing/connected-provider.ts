/** A verified provider with an open connection, as routing and HTTP see it. */
import type { TrustLevel } from "../../core/trust.ts";
import type { CoordinatorMessage, ProviderMessage } from "../../protocol/messages.ts";
import type { Candidate, OfferedModel } from "./pick.ts";
import type { RunningAttempt } from "./running-attempt.ts";

type Heartbeat = Extract<ProviderMessage, { type: "heartbeat" }>;
type Slot = Heartbeat["backend_capacity"]["slots"][number];
export type RegisteredModel = Extract<ProviderMessage, { type: "register" }>["models"][number];
export type InferenceRequest = Extract<CoordinatorMessage, { type: "inference_request" }>;

/** The way to the provider; every method may find the socket gone. */
export interface ProviderLink {
  /** Sends the request and its data frames, all or nothing. Throws `capacity` when the socket's budget does not hold them. */
  submit(request: InferenceRequest, frames: readonly Uint8Array[]): void;
  cancel(attemptId: string): void;
  /** An attempt on this provider has ended. */
  onAttemptEnd(): void;
}

export interface ProviderIdentity {
  /** Stable: derived from the attested signing key. */
  readonly id: string;
  readonly connectionId: string;
  readonly identityKey: string;
  readonly version: string;
  readonly chip: string;
  readonly machineModel: string;
}

/** What a verified statement says; renewed with every challenge. */
export interface Standing {
  readonly trustLevel: TrustLevel;
  /** Base64 X25519 key that requests are sealed to. */
  readonly kPublic: string;
  /** Monotonic. */
  readonly verifiedAtMs: number;
}

export class ConnectedProvider implements Candidate {
  readonly identity: ProviderIdentity;
  readonly models: ReadonlyMap<string, RegisteredModel>;
  readonly link: ProviderLink;
  /** Attempts in flight by id. */
  readonly attempts = new Map<string, RunningAttempt>();
  /** Verified, not draining, not untrusted; set by the session. */
  serving = false;
  standing: Standing;
  readonly #inFlight = new Map<string, number>();
  #slots: ReadonlyMap<string, Slot> = new Map();
  #inFlightTotal = 0;

  constructor(input: {
    readonly identity: ProviderIdentity;
    readonly models: ReadonlyMap<string, RegisteredModel>;
    readonly link: ProviderLink;
    readonly standing: Standing;
  }) {
    this.identity = input.identity;
    this.models = input.models;
    this.link = input.link;
    this.standing = input.standing;
  }

  get id(): string {
    return this.identity.id;
  }

  get trustLevel(): TrustLevel {
    return this.standing.trustLevel;
  }

  get verifiedAtMs(): number {
    return this.standing.verifiedAtMs;
  }

  get inFlight(): number {
    return this.#inFlightTotal;
  }

  inFlightOf(modelId: string): number {
    return this.#inFlight.get(modelId) ?? 0;
  }

  offer(modelId: string): OfferedModel | null {
    const model = this.models.get(modelId);
    if (model === undefined) return null;
    const slot = this.#slots.get(modelId);
    return {
      templateRenderOk: model.template_render_ok,
      tools: model.tools,
      slotState: slot?.state ?? null,
      concurrencyMax: slot?.max_concurrency || null,
    };
  }

  /** Takes one place for a request; answers with its release, which may be called twice. */
  reserve(modelId: string): () => void {
    this.#count(modelId, 1);
    let held = true;
    return () => {
      if (held) this.#count(modelId, -1);
      held = false;
    };
  }

  report(capacity: Heartbeat["backend_capacity"]): void {
    this.#slots = new Map(capacity.slots.map((slot) => [slot.model, slot]));
  }

  #count(modelId: string, delta: number): void {
    this.#inFlight.set(modelId, this.inFlightOf(modelId) + delta);
    this.#inFlightTotal += delta;
  }
}
