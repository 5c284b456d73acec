/** Keeps one connection to the coordinator alive: performs what `link-machine.ts` decides, with pings, heartbeats and deadlines. */
import type { Clock, Timer } from "../../core/clock.ts";
import { Fault, toFault } from "../../core/fault.ts";
import type { Random } from "../../core/ids.ts";
import { errorFields, type Log } from "../../core/log.ts";
import { decodeFrame, type Frame } from "../../protocol/frames.ts";
import {
  decodeCoordinatorMessage,
  encodeMessage,
  type CoordinatorMessage,
  type ProviderMessage,
} from "../../protocol/messages.ts";
import { TIMERS } from "../../protocol/timers.ts";
import type { Connection } from "./connection.ts";
import {
  CONNECT_MS,
  dueMs,
  INITIAL_LINK,
  isConnected,
  stepLink,
  type LinkEffect,
  type LinkEvent,
  type LinkState,
} from "./link-machine.ts";
import { openLinkSocket, type LinkSocket, type OpenLinkSocket } from "./link-socket.ts";

type Message<T extends (CoordinatorMessage | ProviderMessage)["type"]> = Extract<
  CoordinatorMessage | ProviderMessage,
  { type: T }
>;

export interface LinkDeps {
  readonly clock: Clock;
  readonly random: Pick<Random, "fraction">;
  readonly log: Log;
  readonly openSocket?: OpenLinkSocket;
}

export interface LinkOptions {
  readonly socketUrl: string;
  /** Secret part of the join token; null = anonymous. */
  readonly secret: string | null;
}

/** What the provider answers and hears. None of them may throw, but for the two that concern proofs. */
export interface LinkHandlers {
  readonly register: (resumeToken: string | null) => Message<"register">;
  /** Rejects with `provider_rejected` when the welcome is not signed by the coordinator that made the join token. */
  readonly verifyWelcome: (welcome: Message<"welcome">) => Promise<void>;
  readonly attest: (nonce: string) => Promise<Message<"attestation_response">>;
  readonly heartbeat: (seq: number, draining: boolean) => ProviderMessage;
  readonly onRequest: (connection: Connection, message: Message<"inference_request">) => void;
  readonly onFrame: (connection: Connection, frame: Frame) => void;
  readonly onCancel: (requestId: string) => void;
  readonly onTrust: (message: Message<"trust_status">) => void;
  readonly onDrainAck: (drainId: string) => void;
  readonly onLost: (connection: Connection) => void;
  readonly onState: (state: LinkState) => void;
  readonly onFault: (fault: Fault) => void;
}

/** Changes within this time share one heartbeat. */
const HEARTBEAT_COALESCE_MS = 50;
/** Time the peer gets to answer our close frame. */
const CLOSE_MS = 1_000;

class LiveConnection implements Connection {
  readonly number: number;
  readonly #socket: LinkSocket;
  isOpen = true;

  constructor(number: number, socket: LinkSocket) {
    this.number = number;
    this.#socket = socket;
  }

  get bufferedBytes(): number {
    return this.#socket.bufferedBytes;
  }

  sendControl(message: ProviderMessage): void {
    if (this.isOpen) this.#socket.send(encodeMessage(message));
  }

  sendFrame(bytes: Uint8Array): void {
    if (this.isOpen) this.#socket.send(bytes);
  }

  ping(): void {
    this.#socket.ping();
  }

  hangUp(code: number): void {
    this.isOpen = false;
    this.#socket.close(code);
  }

  cut(): void {
    this.isOpen = false;
    this.#socket.terminate();
  }
}

export class Link {
  readonly #deps: LinkDeps;
  readonly #options: LinkOptions;
  readonly #handlers: LinkHandlers;
  #state: LinkState = INITIAL_LINK;
  #connection: LiveConnection | null = null;
  #connections = 0;
  #deadline: Timer | null = null;
  #pinger: Timer | null = null;
  #beat: Timer | null = null;
  #changeBeat: Timer | null = null;
  #heartbeatSeq = 0;
  #heartbeatMs: number = TIMERS.heartbeatMs;
  #heardAtMs = 0;
  #pingedAtMs = 0;
  #resume: { readonly token: string; readonly lostAtMs: number | null } | null = null;

  constructor(deps: LinkDeps, options: LinkOptions, handlers: LinkHandlers) {
    this.#deps = deps;
    this.#options = options;
    this.#handlers = handlers;
  }

  get state(): LinkState {
    return this.#state;
  }

  start(): void {
    this.#dispatch({ type: "start" });
  }

  /** Asks the coordinator to send nothing more; its ack comes through `onDrainAck`. */
  drain(drainId: string): void {
    this.#dispatch({ type: "drain", drainId });
  }

  /** Hangs up and stays away. */
  stop(): void {
    this.#dispatch({ type: "stop" });
  }

  /** Something that heartbeats report has changed. */
  touch(): void {
    if (this.#changeBeat !== null || this.#beat === null) return;
    this.#changeBeat = this.#deps.clock.after(HEARTBEAT_COALESCE_MS, () => {
      this.#changeBeat = null;
      this.#sendHeartbeat();
    });
  }

  #dispatch(event: LinkEvent): void {
    const { clock, random } = this.#deps;
    const before = this.#state;
    const [after, effects] = stepLink(before, event, { nowMs: clock.monotonicMs(), fraction: random.fraction() });
    this.#state = after;
    if (isConnected(before) && !isConnected(after)) this.#lose();
    for (const effect of effects) this.#perform(effect);
    this.#armDeadline();
    if (before.phase !== after.phase) {
      // The steps between are noise to whoever reads along.
      const matters = before.phase === "serving" || after.phase === "serving";
      this.#deps.log[matters ? "info" : "debug"]("link_moved", { from: before.phase, to: after.phase });
      // Routing starts here: it should know at once how much this provider takes.
      if (after.phase === "serving") this.#sendHeartbeat();
      this.#handlers.onState(after);
    }
  }

  #perform(effect: LinkEffect): void {
    switch (effect.type) {
      case "connect":
        this.#connect();
        return;
      case "send_register":
        this.#connection?.sendControl(this.#handlers.register(this.#resumeToken()));
        return;
      case "send_statement":
        void this.#attest(effect.nonce);
        return;
      case "send_drain":
        this.#connection?.sendControl({ type: "provider_drain", drain_id: effect.drainId });
        this.#sendHeartbeat();
        return;
      case "hang_up":
        this.#hangUp(effect.code);
        return;
      case "report":
        this.#handlers.onFault(effect.fault);
    }
  }

  #connect(): void {
    this.#connections += 1;
    const number = this.#connections;
    /** Events of a socket we gave up must not reach its successor. */
    const ifCurrent = (act: () => void): void => {
      if (this.#connection?.number === number) act();
    };
    const open = this.#deps.openSocket ?? openLinkSocket;
    const socket = open(
      { url: this.#options.socketUrl, secret: this.#options.secret, connectMs: CONNECT_MS },
      {
        onOpen: () => ifCurrent(() => this.#opened()),
        onText: (text) => ifCurrent(() => this.#onText(text)),
        onBinary: (bytes) => ifCurrent(() => this.#onBinary(bytes)),
        onHeard: () => ifCurrent(() => this.#heard()),
        onRefused: (status) => ifCurrent(() => this.#dispatch({ type: "refused", status })),
        onClosed: (code) => ifCurrent(() => this.#dispatch({ type: "lost", code })),
      },
    );
    this.#connection = new LiveConnection(number, socket);
  }

  #opened(): void {
    const { clock } = this.#deps;
    this.#heard();
    this.#pingedAtMs = clock.nowMs();
    this.#pinger = clock.every(TIMERS.pingMs, () => this.#ping());
    this.#dispatch({ type: "opened" });
  }

  #heard(): void {
    this.#heardAtMs = this.#deps.clock.monotonicMs();
  }

  /** Wall time shows a sleep that the monotonic clock may have slept through. */
  #ping(): void {
    const { clock } = this.#deps;
    const gapMs = clock.nowMs() - this.#pingedAtMs;
    this.#pingedAtMs = clock.nowMs();
    if (gapMs > TIMERS.suspensionMs) this.#dispatch({ type: "suspended" });
    else if (clock.monotonicMs() - this.#heardAtMs > TIMERS.silenceMs) this.#dispatch({ type: "silent" });
    else this.#connection?.ping();
  }

  #onText(text: string): void {
    let decoded;
    try {
      decoded = decodeCoordinatorMessage(text);
    } catch (error) {
      this.#break(error);
      return;
    }
    if (decoded.ok) this.#onMessage(decoded.message);
    else this.#connection?.sendControl({ type: "unsupported", unsupported_type: decoded.unsupported });
  }

  #onBinary(bytes: Uint8Array): void {
    if (this.#connection === null) return;
    try {
      this.#handlers.onFrame(this.#connection, decodeFrame(bytes));
    } catch (error) {
      this.#break(error);
    }
  }

  #onMessage(message: CoordinatorMessage): void {
    const connection = this.#connection;
    if (connection === null) return;
    switch (message.type) {
      case "welcome":
        void this.#welcome(message);
        return;
      case "reject":
        this.#dispatch({
          type: "rejected",
          code: message.code,
          ...(message.retry_after_ms === undefined ? {} : { retryAfterMs: message.retry_after_ms }),
        });
        return;
      case "attestation_challenge":
        void this.#attest(message.nonce);
        return;
      case "trust_status":
        this.#handlers.onTrust(message);
        this.#dispatch({ type: "judged", online: message.status === "online" });
        return;
      case "inference_request":
        this.#handlers.onRequest(connection, message);
        return;
      case "cancel":
        this.#handlers.onCancel(message.request_id);
        return;
      case "provider_drain_ack":
        this.#handlers.onDrainAck(message.drain_id);
        return;
      case "unsupported":
        this.#deps.log.warn("message_unsupported_by_coordinator", { type: message.unsupported_type });
    }
  }

  async #welcome(message: Message<"welcome">): Promise<void> {
    const number = this.#connections;
    try {
      await this.#handlers.verifyWelcome(message);
      if (this.#connection?.number !== number || this.#state.phase !== "registering") return;
      this.#resume = { token: message.resume_token, lostAtMs: null };
      this.#heartbeatMs = message.heartbeat_ms;
      this.#dispatch({ type: "welcome", nonce: message.nonce });
    } catch (error) {
      if (this.#connection?.number === number) this.#break(error);
    }
  }

  /** A proof that cannot be made (a key file gone) must be seen: the coordinator would only see a timeout. */
  async #attest(nonce: string): Promise<void> {
    const connection = this.#connection;
    try {
      const response = await this.#handlers.attest(nonce);
      if (this.#connection !== connection) return;
      connection?.sendControl(response);
      if (this.#beat === null) this.#startHeartbeats();
    } catch (error) {
      if (this.#connection === connection) this.#break(error);
    }
  }

  #break(thrown: unknown): void {
    this.#deps.log.warn("link_broke", errorFields(thrown));
    this.#dispatch({ type: "broken", fault: toFault(thrown) });
  }

  #startHeartbeats(): void {
    this.#heartbeatSeq = 0;
    this.#beat = this.#deps.clock.every(this.#heartbeatMs, () => this.#sendHeartbeat());
    this.touch();
  }

  #sendHeartbeat(): void {
    if (this.#beat === null) return;
    this.#connection?.sendControl(this.#handlers.heartbeat(this.#heartbeatSeq, this.#state.phase === "draining"));
    this.#heartbeatSeq += 1;
  }

  #resumeToken(): string | null {
    const { clock } = this.#deps;
    if (this.#resume === null) return null;
    const { token, lostAtMs } = this.#resume;
    return lostAtMs !== null && clock.monotonicMs() - lostAtMs > TIMERS.resumeTokenMs ? null : token;
  }

  /** The connection stops to count: its timers end and its attempts are told, before anything new starts. */
  #lose(): void {
    const connection = this.#connection;
    for (const timer of [this.#pinger, this.#beat, this.#changeBeat]) timer?.cancel();
    this.#pinger = null;
    this.#beat = null;
    this.#changeBeat = null;
    if (this.#resume !== null) this.#resume = { ...this.#resume, lostAtMs: this.#deps.clock.monotonicMs() };
    if (connection === null) return;
    this.#handlers.onLost(connection);
    connection.isOpen = false;
  }

  #hangUp(code: number): void {
    const connection = this.#connection;
    this.#connection = null;
    if (connection === null) return;
    connection.hangUp(code);
    this.#deps.clock.after(CLOSE_MS, () => connection.cut());
  }

  #armDeadline(): void {
    this.#deadline?.cancel();
    const due = dueMs(this.#state);
    const waitMs = due === null ? null : due - this.#deps.clock.monotonicMs();
    this.#deadline = waitMs === null ? null : this.#deps.clock.after(waitMs, () => this.#dispatch({ type: "tick" }));
  }
}
