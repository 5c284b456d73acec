/**
 * A coordinator for tests that does exactly what the test says: real sockets, real sealing and signatures, and any
 * misbehaviour a test wants to send.
 */
import type { CompletionEvent } from "../../src/core/completion.ts";
import { createIds, systemRandom } from "../../src/core/ids.ts";
import { encodeCanonicalChat, type ChatRequest } from "../../src/dialects/chat/request.ts";
import { decodeFrame, FRAME_KIND, openFrame, sealFrame, type Frame } from "../../src/protocol/frames.ts";
import {
  decodeProviderMessage,
  encodeMessage,
  type CoordinatorMessage,
  type ProviderMessage,
} from "../../src/protocol/messages.ts";
import { decodeEvents, decodeTerminal, splitRequest, type WireTerminal } from "../../src/protocol/payloads.ts";
import { SUBPROTOCOL } from "../../src/protocol/timers.ts";
import { sealToProvider, type AttemptCiphers } from "../../src/trust/seal.ts";
import { openSoftwareSigner, type Signer } from "../../src/trust/signer.ts";
import { verifyStatement, type StatementVerdict } from "../../src/trust/statements.ts";
import { signWelcome } from "../../src/trust/welcome.ts";
import { waitFor } from "./wait.ts";

type OfType<T extends ProviderMessage["type"]> = Extract<ProviderMessage, { type: T }>;
type InferenceRequest = Extract<CoordinatorMessage, { type: "inference_request" }>;

const ids = createIds(systemRandom());
const nonceOf = (): string => Buffer.from(systemRandom().bytes(32)).toString("base64");

/** One attempt as the coordinator sees it. */
export class ScriptedAttempt {
  readonly id: string;
  readonly request: InferenceRequest;
  readonly requestFrames: readonly Uint8Array[];
  readonly ciphers: AttemptCiphers;
  readonly events: CompletionEvent[] = [];
  readonly terminals: WireTerminal[] = [];
  readonly errors: OfType<"inference_error">[] = [];
  /** In order of arrival: `accepted`, `chunk`, `terminal`, `error`. */
  readonly order: string[] = [];

  constructor(request: InferenceRequest, requestFrames: readonly Uint8Array[], ciphers: AttemptCiphers) {
    this.id = request.request_id;
    this.request = request;
    this.requestFrames = requestFrames;
    this.ciphers = ciphers;
  }

  get text(): string {
    return this.events.map((event) => (event.type === "text" ? event.text : "")).join("");
  }

  get ended(): boolean {
    return this.terminals.length + this.errors.length > 0;
  }

  take(frame: Frame): void {
    const plaintext = openFrame(this.ciphers.response, frame);
    if (frame.kind === FRAME_KIND.chunk) this.events.push(...decodeEvents(plaintext));
    else this.terminals.push(decodeTerminal(plaintext));
    this.order.push(frame.kind === FRAME_KIND.chunk ? "chunk" : "terminal");
  }

  async end(deadlineMs?: number): Promise<this> {
    await waitFor(`the end of attempt ${this.id}`, () => this.ended, deadlineMs);
    return this;
  }
}

export interface SendOptions {
  readonly model?: string;
  readonly id?: string;
  readonly budgetMs?: number;
  /** Another key than the registered one. */
  readonly kPublic?: string;
  /** Replaces the canonical request. */
  readonly body?: Uint8Array;
}

export class ScriptedConnection {
  readonly authorization: string | null;
  readonly messages: ProviderMessage[] = [];
  readonly attempts = new Map<string, ScriptedAttempt>();
  /** Frames for no known attempt, or that did not open. */
  readonly strayFrames: Frame[] = [];
  readonly faults: unknown[] = [];
  closeCode: number | null = null;
  readonly #coordinator: ScriptedCoordinator;
  #socket: Bun.ServerWebSocket<SocketData> | null = null;

  constructor(coordinator: ScriptedCoordinator, authorization: string | null) {
    this.#coordinator = coordinator;
    this.authorization = authorization;
  }

  opened(socket: Bun.ServerWebSocket<SocketData>): void {
    this.#socket = socket;
  }

  onText(text: string): void {
    const decoded = decodeProviderMessage(text);
    if (!decoded.ok) throw new Error(`the provider sent an unknown message: ${decoded.unsupported}`);
    const { message } = decoded;
    this.messages.push(message);
    if (message.type === "inference_accepted") this.attempts.get(message.request_id)?.order.push("accepted");
    if (message.type === "inference_error") {
      const attempt = this.attempts.get(message.request_id);
      attempt?.errors.push(message);
      attempt?.order.push("error");
    }
    if (message.type === "register" && this.#coordinator.isAutomatic)
      this.admit().catch((error: unknown) => this.faults.push(error));
  }

  onBinary(bytes: Uint8Array): void {
    const frame = decodeFrame(bytes);
    const attempt = this.attempts.get(frame.attemptId);
    if (attempt === undefined) this.strayFrames.push(frame);
    else
      try {
        attempt.take(frame);
      } catch (error) {
        this.faults.push(error);
      }
  }

  get isOpen(): boolean {
    return this.closeCode === null;
  }

  send(message: CoordinatorMessage): void {
    this.sendRaw(encodeMessage(message));
  }

  sendRaw(data: string | Uint8Array): void {
    this.#socket?.send(data);
  }

  close(code = 1000): void {
    this.#socket?.close(code);
  }

  /** Cuts the connection without a close frame. */
  cut(): void {
    this.#socket?.terminate();
  }

  of<T extends ProviderMessage["type"]>(type: T): OfType<T>[] {
    return this.messages.filter((message): message is OfType<T> => message.type === type);
  }

  /** The message of this type with this number, once it is there. */
  wait<T extends ProviderMessage["type"]>(type: T, index = 0): Promise<OfType<T>> {
    return waitFor(`${type} number ${index}`, () => this.of(type)[index]);
  }

  async welcome(nonce: string, signer: Signer = this.#coordinator.signer): Promise<void> {
    const register = await this.wait("register");
    const fields = {
      connection_id: ids.entityId("conn"),
      resume_token: ids.secret("rt"),
      heartbeat_ms: 5_000,
      nonce,
      limits: { control_frame_bytes_max: 1 << 20, data_frame_bytes_max: 10 << 20, attestation_reply_ms: 30_000 },
    };
    const audience = { identityKey: register.identity_key, kPublic: register.k_public };
    this.send({ type: "welcome", ...fields, signature: await signWelcome(signer, fields, audience) });
  }

  /** The answer to a nonce, checked as a coordinator checks it. */
  async verify(nonce: string, index: number): Promise<StatementVerdict> {
    const register = await this.wait("register");
    const response = await this.wait("attestation_response", index);
    return verifyStatement(response, {
      nonce,
      identityKey: register.identity_key,
      expectedKPublic: index === 0 ? register.k_public : null,
      nowMs: Date.now(),
      expectedModels: register.models,
    });
  }

  judge(
    status: "online" | "waiting" | "untrusted",
    reason: "verified" | "posture_false" | "model_hash_mismatch" = "verified",
  ): void {
    this.send({
      type: "trust_status",
      trust_level: status === "online" ? "self_signed" : "none",
      status,
      reason,
      seen: null,
      expected: null,
      retry_at: null,
      command: null,
    });
  }

  /** Welcome, statement, verdict: what an honest coordinator does. */
  async admit(): Promise<StatementVerdict> {
    const nonce = nonceOf();
    await this.welcome(nonce);
    const verdict = await this.verify(nonce, 0);
    if (verdict.outcome !== "verified") throw new Error(`the statement was refused: ${verdict.reason}`);
    this.judge("online");
    return verdict;
  }

  async challenge(): Promise<StatementVerdict> {
    const nonce = nonceOf();
    const index = this.of("attestation_response").length;
    this.send({ type: "attestation_challenge", nonce });
    return this.verify(nonce, index);
  }

  /** Seals a request without sending it. */
  async seal(chat: ChatRequest, options: SendOptions = {}): Promise<ScriptedAttempt> {
    const register = await this.wait("register");
    const id = options.id ?? ids.uuid();
    const model = options.model ?? chat.model;
    const body = options.body ?? encodeCanonicalChat(chat);
    const parts = splitRequest(body);
    const { enc, ciphers } = await sealToProvider({
      kPublic: options.kPublic ?? register.k_public,
      attemptId: id,
      modelBuild: model,
    });
    const request: InferenceRequest = {
      type: "inference_request",
      request_id: id,
      model,
      enc,
      parts: parts.length,
      bytes: body.length,
      max_tokens: chat.max_tokens ?? 8192,
      first_content_budget_ms: options.budgetMs ?? 60_000,
      priority: "interactive",
    };
    const frames = parts.map((part) => sealFrame(ciphers.request, FRAME_KIND.request, id, part));
    const attempt = new ScriptedAttempt(request, frames, ciphers);
    this.attempts.set(id, attempt);
    return attempt;
  }

  async run(chat: ChatRequest, options: SendOptions = {}): Promise<ScriptedAttempt> {
    const attempt = await this.seal(chat, options);
    this.submit(attempt);
    return attempt;
  }

  submit(attempt: ScriptedAttempt): void {
    this.send(attempt.request);
    for (const frame of attempt.requestFrames) this.sendRaw(frame);
  }
}

interface SocketData {
  readonly connection: ScriptedConnection;
}

export interface ScriptedOptions {
  readonly keyPath: string;
  /** Admits every provider by itself; default true. */
  readonly automatic?: boolean;
}

export class ScriptedCoordinator implements AsyncDisposable {
  readonly connections: ScriptedConnection[] = [];
  readonly signer: Signer;
  isAutomatic: boolean;
  /** HTTP status that refuses the next upgrades; null = take them. */
  refusal: number | null = null;
  refusals = 0;
  readonly #server: Bun.Server<SocketData>;

  private constructor(signer: Signer, automatic: boolean) {
    this.signer = signer;
    this.isAutomatic = automatic;
    this.#server = Bun.serve<SocketData>({
      hostname: "127.0.0.1",
      port: 0,
      fetch: (request, server) => this.#upgrade(request, server),
      websocket: {
        maxPayloadLength: 64 << 20,
        backpressureLimit: 256 << 20,
        perMessageDeflate: false,
        open: (socket) => socket.data.connection.opened(socket),
        message: (socket, data) =>
          typeof data === "string" ? socket.data.connection.onText(data) : socket.data.connection.onBinary(data),
        close: (socket, code) => {
          socket.data.connection.closeCode = code;
        },
      },
    });
  }

  static async start(options: ScriptedOptions): Promise<ScriptedCoordinator> {
    return new ScriptedCoordinator(await openSoftwareSigner(options.keyPath), options.automatic ?? true);
  }

  get url(): string {
    return `ws://127.0.0.1:${this.#server.port}`;
  }

  get port(): number {
    return this.#server.port ?? 0;
  }

  /** The connection with this number, once it is there. */
  connection(index = 0): Promise<ScriptedConnection> {
    return waitFor(`connection number ${index}`, () => this.connections[index]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.stop(true);
  }

  #upgrade(request: Request, server: Bun.Server<SocketData>): Response | undefined {
    if (this.refusal !== null) {
      this.refusals += 1;
      return new Response("no", { status: this.refusal });
    }
    if (new URL(request.url).pathname !== "/ws/provider") return new Response("nothing here", { status: 404 });
    const connection = new ScriptedConnection(this, request.headers.get("authorization"));
    const upgraded = server.upgrade(request, {
      data: { connection },
      headers: { "Sec-WebSocket-Protocol": SUBPROTOCOL },
    });
    if (!upgraded) return new Response("upgrade expected", { status: 426 });
    this.connections.push(connection);
    return undefined;
  }
}
