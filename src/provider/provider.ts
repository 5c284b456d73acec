/** A provider that serves a coordinator: loads its model, keeps the link, runs what comes, and stops without losing work. */
import type { Hardware } from "../core/hardware.ts";
import { Fault } from "../core/fault.ts";
import { toHex } from "../core/ids.ts";
import { errorFields } from "../core/log.ts";
import { TRUST_REASONS } from "../core/trust.ts";
import type { CoordinatorMessage } from "../protocol/messages.ts";
import { providerIdOf } from "../trust/provider-id.ts";
import { ProviderKeys } from "../trust/seal.ts";
import type { Signer } from "../trust/signer.ts";
import { parseJoinToken } from "../trust/tokens.ts";
import { drainingFault } from "./jobs/attempt.ts";
import { toCoordinatorUrl } from "./link/coordinator-url.ts";
import { toHeartbeat } from "./link/heartbeat.ts";
import { Jobs } from "./jobs/jobs.ts";
import { Lifecycle, type LifecycleDeps, type ProviderEnd, type ProviderEvents, type ServedModel } from "./lifecycle.ts";
import { isConnected, type LinkState } from "./link/link-machine.ts";
import type { OpenLinkSocket } from "./link/link-socket.ts";
import { Link } from "./link/link.ts";
import type { LiveMetrics } from "./hardware/live-metrics.ts";
import { Registrar, type AdvertisedModel, type SystemFacts } from "./link/registration.ts";

type TrustStatusMessage = Extract<CoordinatorMessage, { type: "trust_status" }>;

export interface ProviderDeps extends LifecycleDeps {
  readonly signer: Signer;
  readonly readMetrics: () => Promise<LiveMetrics>;
  readonly openSocket?: OpenLinkSocket;
}

export interface ProviderOptions {
  readonly dataDir: string;
  readonly version: string;
  /** Null = the one the join token names. */
  readonly coordinatorUrl: string | null;
  /** Null = anonymous, for coordinators that allow it. */
  readonly joinToken: string | null;
  readonly hardware: Hardware;
  /** Asked after loading, because only then the native library is known. */
  readonly system: () => SystemFacts;
  readonly model: ServedModel;
  readonly events: ProviderEvents;
}

export interface Provider {
  /** `prov_…`, the same in every run of this folder. */
  readonly id: string;
  /** Resolves when the process should end by itself; pends for ever otherwise. */
  readonly ended: Promise<ProviderEnd>;
  readonly linkPhase: LinkState["phase"];
  /** Takes no new work, lets running work end within the time, cancels the rest, hangs up. Safe to call twice. */
  stop(options: { readonly graceMs: number }): Promise<void>;
}

const METRICS_MS = 5_000;
/** For cancelled attempts to send their terminals. */
const CANCEL_MS = 500;
/** The drain's ack may take a round trip more than the last terminal. */
const ACK_MS = 500;

const targetOf = (options: ProviderOptions) => {
  const token = options.joinToken === null ? null : parseJoinToken(options.joinToken);
  const text = options.coordinatorUrl ?? token?.url;
  if (text === undefined) throw new Fault("usage", "no coordinator is named", { hint: "add --coordinator-url <url>" });
  return { ...toCoordinatorUrl(text), secret: token?.secret ?? null, fingerprint: token?.fingerprint ?? null };
};

class CoordinatedProvider implements Provider {
  readonly id: string;
  readonly #deps: ProviderDeps;
  readonly #options: ProviderOptions;
  readonly #life: Lifecycle;
  readonly #keys: ProviderKeys;
  readonly #jobs: Jobs;
  readonly #target: ReturnType<typeof targetOf>;
  #link: Link | null = null;
  #metrics: LiveMetrics | null = null;
  #metricsTimer: { cancel(): void } | null = null;
  #trust: TrustStatusMessage | null = null;
  #announced: "connecting" | "serving" | null = null;
  #lastFault = "";
  #drainAcked: () => void = () => undefined;
  #stopped: Promise<void> | null = null;

  constructor(deps: ProviderDeps, options: ProviderOptions, keys: ProviderKeys) {
    this.#deps = deps;
    this.#options = options;
    this.#keys = keys;
    this.id = providerIdOf(deps.signer.publicKey);
    this.#target = targetOf(options);
    this.#life = new Lifecycle(deps, {
      dataDir: options.dataDir,
      start: {
        mode: "coordinator",
        program_version: options.version,
        provider_id: this.id,
        coordinator_url: this.#target.socketUrl,
      },
      events: options.events,
      onChange: () => this.#link?.touch(),
    });
    this.#jobs = new Jobs({
      clock: deps.clock,
      log: deps.log,
      keys,
      slots: this.#life.slots,
      onChange: () => this.#link?.touch(),
    });
  }

  get ended(): Promise<ProviderEnd> {
    return this.#life.ended;
  }

  get linkPhase(): LinkState["phase"] {
    return this.#link?.state.phase ?? "idle";
  }

  async start(): Promise<void> {
    const { warning } = this.#target;
    if (warning !== null) this.#deps.log.warn("coordinator_not_encrypted", { warning });
    try {
      const { engine, hashed } = await this.#life.load(this.#options.model);
      await this.#readMetrics();
      this.#metricsTimer = this.#deps.clock.every(METRICS_MS, () => void this.#readMetrics());
      this.#link = this.#openLink({ model: engine.model, manifestSha256: hashed.manifestSha256 });
      this.#link.start();
    } catch (error) {
      this.#metricsTimer?.cancel();
      await this.#life.abandon(error);
    }
  }

  stop({ graceMs }: { readonly graceMs: number }): Promise<void> {
    this.#stopped ??= this.#stop(graceMs);
    return this.#stopped;
  }

  async #stop(graceMs: number): Promise<void> {
    const link = this.#link;
    this.#life.enter("draining");
    if (link !== null) {
      await this.#drain(link, graceMs);
      this.#jobs.abortAll(drainingFault());
      await this.#within(CANCEL_MS, this.#jobs.idle());
      link.stop();
    }
    this.#metricsTimer?.cancel();
    await this.#life[Symbol.asyncDispose]();
  }

  /** Both ends know that nothing is in flight, or the time is up. */
  async #drain(link: Link, graceMs: number): Promise<void> {
    const idle = this.#jobs.drain();
    if (link.state.phase !== "serving") {
      await this.#within(graceMs, idle);
      return;
    }
    const acked = new Promise<void>((resolve) => {
      this.#drainAcked = resolve;
    });
    link.drain(toHex(this.#deps.random.bytes(16)));
    await this.#within(graceMs, idle);
    if (this.#jobs.running === 0) await this.#within(Math.min(graceMs, ACK_MS), acked);
  }

  async #within(waitMs: number, work: Promise<void>): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = this.#deps.clock.after(waitMs, resolve);
    await Promise.race([work, promise]);
    timer.cancel();
  }

  #openLink(model: AdvertisedModel): Link {
    const { socketUrl, secret, fingerprint } = this.#target;
    const registrar = new Registrar(
      { clock: this.#deps.clock, signer: this.#deps.signer, keys: this.#keys },
      {
        version: this.#options.version,
        hardware: this.#options.hardware,
        system: this.#options.system(),
        models: [model],
        fingerprint,
      },
    );
    return new Link(
      this.#deps,
      { socketUrl, secret },
      {
        register: (resumeToken) => registrar.register(resumeToken),
        verifyWelcome: (welcome) => registrar.verifyWelcome(welcome),
        attest: (nonce) => registrar.attest(nonce),
        heartbeat: (seq, draining) => this.#heartbeat(seq, draining),
        onRequest: (connection, message) => this.#jobs.request(connection, message),
        onFrame: (connection, frame) => this.#jobs.frame(connection, frame),
        onCancel: (id) => this.#jobs.cancel(id),
        onTrust: (message) => this.#onTrust(message),
        onDrainAck: () => this.#drainAcked(),
        onLost: (connection) => this.#jobs.dropConnection(connection),
        onState: (state) => this.#onState(state),
        onFault: (fault) => this.#onFault(fault),
      },
    );
  }

  #heartbeat(seq: number, draining: boolean) {
    const { running, counters } = this.#jobs;
    const { slots } = this.#life;
    return toHeartbeat({ seq, draining, running, counters, metrics: this.#metrics, slots: slots.views() });
  }

  #onTrust(message: TrustStatusMessage): void {
    this.#trust = message;
    const { type: _type, ...trust } = message;
    const at = new Date(this.#deps.clock.nowMs()).toISOString();
    this.#life.state.update({ trust: { ...trust, at } });
    if (message.status === "online" || this.#jobs.draining) return;
    const { text } = TRUST_REASONS[message.reason];
    this.#onFault(
      new Fault("provider_rejected", `the coordinator routes nothing to this provider: ${text}`, {
        hint: message.command === null ? "wait: the coordinator asks again" : `run: ${message.command}`,
        reason: message.reason,
      }),
    );
  }

  /** One phase line per outage and one serving line per recovery, however many retries lie between. */
  #onState(state: LinkState): void {
    if (this.#jobs.draining) return;
    if (state.phase === "serving") {
      this.#announced = "serving";
      this.#lastFault = "";
      this.#life.enter("serving", { last_error: null });
      this.#options.events.onServing({
        models: [this.#options.model.id],
        provider_id: this.id,
        trust_level: this.#trust?.trust_level ?? "none",
      });
      return;
    }
    if (state.phase === "connecting" && this.#announced !== "connecting") {
      this.#announced = "connecting";
      this.#life.enter("connecting");
      return;
    }
    const phase = isConnected(state) ? "verifying" : state.phase === "backoff" ? "backoff" : "connecting";
    this.#life.state.update({ phase });
  }

  /** The same fault retried again and again is told once. */
  #onFault(fault: Fault): void {
    const key = `${fault.code} ${fault.reason ?? ""} ${fault.message}`;
    if (key === this.#lastFault) return;
    this.#lastFault = key;
    this.#life.report(fault);
  }

  async #readMetrics(): Promise<void> {
    this.#life.state.update({
      requests_running: this.#jobs.running,
      requests_served: this.#jobs.counters.requestsServed,
    });
    try {
      this.#metrics = await this.#deps.readMetrics();
    } catch (error) {
      this.#deps.log.warn("metrics_unreadable", errorFields(error));
    }
  }
}

/**
 * Resolves once the model is loaded and the link is started; `onServing` tells when requests can come.
 * Faults: `usage`, `already_running`, `io_failed`, and whatever hashing and loading throw.
 */
export const startProvider = async (deps: ProviderDeps, options: ProviderOptions): Promise<Provider> => {
  const keys = await ProviderKeys.create(deps);
  const provider = new CoordinatedProvider(deps, options, keys);
  await provider.start();
  return provider;
};
