/** A raw protocol provider for tests: speaks protocol v1 over a real socket, and misbehaves exactly as it is told. */
import { WebSocket } from "ws";
import type { CompletionEvent, CompletionTerminal } from "../../src/core/completion.ts";
import { systemClock } from "../../src/core/clock.ts";
import { createIds, systemRandom } from "../../src/core/ids.ts";
import { decodeCanonicalChat, type ChatRequest } from "../../src/dialects/chat/request.ts";
import { decodeFrame, FRAME_KIND, openFrame, sealFrame, type FrameKind } from "../../src/protocol/frames.ts";
import {
  decodeCoordinatorMessage,
  encodeMessage,
  type CoordinatorMessage,
  type ProviderMessage,
} from "../../src/protocol/messages.ts";
import { encodeEvents, encodeTerminal, RequestAssembler } from "../../src/protocol/payloads.ts";
import { SUBPROTOCOL } from "../../src/protocol/timers.ts";
import { ProviderKeys, type AttemptCiphers } from "../../src/trust/seal.ts";
import { openSoftwareSigner, type Signer } from "../../src/trust/signer.ts";
import { signStatement, type Statement } from "../../src/trust/statements.ts";
import { tempDir } from "./temp-dir.ts";
import { waitFor } from "./wait.ts";

type Message<T extends CoordinatorMessage["type"]> = Extract<CoordinatorMessage, { type: T }>;
type Registration = Extract<ProviderMessage, { type: "register" }>;
export type ScriptedModel = Registration["models"][number];
type Heartbeat = Extract<ProviderMessage, { type: "heartbeat" }>;

const decoder = new TextDecoder();

export const scriptedModel = (id: string, changes: Partial<ScriptedModel> = {}): ScriptedModel => ({
  id,
  manifest_sha256: "a".repeat(64),
  size_bytes: 1_000_000,
  quantization: "Q8_0",
  context: 4096,
  vision: false,
  tools: true,
  template_render_ok: true,
  ...changes,
});

export const scriptedTerminal = (changes: Partial<CompletionTerminal> = {}): CompletionTerminal => ({
  finishReason: "stop",
  usage: { promptTokens: 5, completionTokens: 2, reasoningTokens: 0, cachedTokens: 0 },
  timings: { queueMs: 0, prefillMs: 1, decodeMs: 1 },
  ...changes,
});

/** One request as the provider got it, and what it may do about it. */
export class ScriptedJob {
  readonly id: string;
  readonly model: string;
  readonly announcement: Message<"inference_request">;
  readonly request: ChatRequest;
  readonly ciphers: AttemptCiphers;
  readonly #provider: ScriptedProvider;
  cancelled = false;
  chunks = 0;

  constructor(
    provider: ScriptedProvider,
    announcement: Message<"inference_request">,
    opened: { readonly request: ChatRequest; readonly ciphers: AttemptCiphers },
  ) {
    this.#provider = provider;
    this.announcement = announcement;
    this.id = announcement.request_id;
    this.model = announcement.model;
    this.request = opened.request;
    this.ciphers = opened.ciphers;
  }

  accept(): void {
    this.#provider.send({ type: "inference_accepted", request_id: this.id });
  }

  seal(kind: FrameKind, plaintext: Uint8Array): Uint8Array {
    return sealFrame(this.ciphers.response, kind, this.id, plaintext);
  }

  events(events: readonly CompletionEvent[]): void {
    this.chunks += 1;
    this.#provider.sendBytes(this.seal(FRAME_KIND.chunk, encodeEvents(events)));
  }

  text(...texts: readonly string[]): void {
    for (const text of texts) this.events([{ type: "text", text }]);
  }

  finish(changes: Partial<CompletionTerminal> = {}): void {
    const terminal = { ...scriptedTerminal(changes), chunks: this.chunks };
    this.#provider.sendBytes(this.seal(FRAME_KIND.terminal, encodeTerminal(terminal)));
  }

  fail(error: Omit<Extract<ProviderMessage, { type: "inference_error" }>, "type" | "request_id">): void {
    this.#provider.send({ type: "inference_error", request_id: this.id, ...error });
  }
}

export interface ScriptedOptions {
  /** `ws://…/ws/provider` */
  readonly url: string;
  readonly token?: string;
  readonly signer?: Signer;
  readonly models?: readonly ScriptedModel[];
  /** What it does with each request; without one it accepts and answers "Hello world". */
  readonly onRequest?: (job: ScriptedJob) => void | Promise<void>;
  /** Changes what is signed, and what is registered. */
  readonly changeStatement?: (statement: Statement) => Statement;
  readonly changeRegistration?: (registration: Registration) => Registration;
  /** False: says nothing until told. */
  readonly register?: boolean;
  readonly answerChallenges?: boolean;
  /** PEM certificate to trust, for `wss`. */
  readonly ca?: string;
  /** Slots of the first heartbeat; without one no heartbeat is sent. */
  readonly concurrency?: number;
}

const HARDWARE: Registration["hardware"] = {
  machine_model: "Test1,1",
  chip_name: "Test chip",
  chip_family: "Unknown",
  chip_tier: "Unknown",
  memory_gb: 16,
  memory_available_gb: 8,
  cpu_cores: { total: 2, performance: 2, efficiency: 0 },
  gpu_cores: 0,
  memory_bandwidth_gbs: 50,
};

/** A fresh software identity. */
export const scriptedSigner = async (): Promise<Signer> => {
  await using dir = await tempDir();
  return openSoftwareSigner(`${dir.path}/identity.key`);
};

export class ScriptedProvider implements AsyncDisposable {
  readonly signer: Signer;
  readonly jobs: ScriptedJob[] = [];
  readonly messages: CoordinatorMessage[] = [];
  readonly cancels: string[] = [];
  readonly #options: ScriptedOptions;
  readonly #socket: WebSocket;
  readonly #keys: ProviderKeys;
  readonly #incoming = new Map<
    string,
    { announcement: Message<"inference_request">; assembler: RequestAssembler; ciphers: Promise<AttemptCiphers> }
  >();
  closed: { readonly code: number; readonly reason: string } | null = null;
  onRequest: (job: ScriptedJob) => void | Promise<void>;
  /** Failures of the script itself, which a test should look at when it waits in vain. */
  readonly errors: unknown[] = [];
  #frames: Promise<void> = Promise.resolve();

  private constructor(options: ScriptedOptions, signer: Signer, keys: ProviderKeys) {
    this.#options = options;
    this.signer = signer;
    this.#keys = keys;
    this.onRequest = options.onRequest ?? helloWorld;
    this.#socket = new WebSocket(options.url, SUBPROTOCOL, {
      perMessageDeflate: false,
      ...(options.ca === undefined ? {} : { ca: options.ca }),
      headers: options.token === undefined ? {} : { authorization: `Bearer ${options.token}` },
    });
    this.#socket.on("message", (data: Buffer, isBinary: boolean) => this.#receive(data, isBinary));
    this.#socket.on("close", (code, reason) => {
      this.closed = { code, reason: reason.toString() };
    });
    this.#socket.on("error", (error) => this.errors.push(error));
    this.#socket.on("unexpected-response", (_request, response) => {
      this.errors.push(new Error(`refused with ${response.statusCode}`));
      this.closed = { code: response.statusCode ?? 0, reason: "refused" };
    });
  }

  /** Connects and sends `register`; verified or not shows in `trust`. */
  static async connect(options: ScriptedOptions): Promise<ScriptedProvider> {
    const signer = options.signer ?? (await scriptedSigner());
    const keys = await ProviderKeys.create({ clock: systemClock(), random: systemRandom() });
    const provider = new ScriptedProvider(options, signer, keys);
    await waitFor("the socket to open or close", () => provider.open || provider.closed !== null);
    if (provider.open && options.register !== false) provider.register();
    return provider;
  }

  /** Connects and waits until it is told its standing. */
  static async start(options: ScriptedOptions): Promise<ScriptedProvider> {
    const provider = await ScriptedProvider.connect(options);
    await waitFor("a trust status", () => provider.trust !== null || provider.closed !== null);
    if (options.concurrency !== undefined && provider.open) {
      provider.heartbeat({ concurrency: options.concurrency });
      await provider.sync();
    }
    return provider;
  }

  get open(): boolean {
    return this.#socket.readyState === WebSocket.OPEN;
  }

  /** The last `trust_status`. */
  get trust(): Message<"trust_status"> | null {
    return this.last("trust_status");
  }

  get kPublic(): string {
    return this.#keys.publicKey;
  }

  last<T extends CoordinatorMessage["type"]>(type: T): Message<T> | null {
    return (this.messages.findLast((message) => message.type === type) as Message<T> | undefined) ?? null;
  }

  register(): void {
    const registration: Registration = {
      type: "register",
      protocol: 1,
      version: "0.1.0",
      capabilities: [],
      identity_key: this.signer.publicKey,
      k_public: this.#keys.publicKey,
      hardware: HARDWARE,
      models: [...(this.#options.models ?? [scriptedModel("test-model")])],
    };
    this.send(this.#options.changeRegistration?.(registration) ?? registration);
  }

  async attest(nonce: string): Promise<void> {
    const statement: Statement = {
      nonce,
      identity_key: this.signer.publicKey,
      k_public: this.#keys.publicKey,
      hardware: HARDWARE,
      os: { platform: "linux", version: "test", arch: "x64" },
      posture: {
        sip_enabled: null,
        secure_boot_enabled: null,
        authenticated_root_enabled: null,
        core_dumps_disabled: true,
      },
      build_sha256: null,
      native_sha256: null,
      models: (this.#options.models ?? [scriptedModel("test-model")]).map(({ id, manifest_sha256 }) => ({
        id,
        manifest_sha256,
      })),
      issued_at: new Date().toISOString(),
    };
    const signed = await signStatement(this.signer, this.#options.changeStatement?.(statement) ?? statement);
    this.send({ type: "attestation_response", ...signed });
  }

  /** One slot per model, all with the same capacity. */
  heartbeat(input: {
    readonly concurrency: number;
    readonly seq?: number;
    readonly state?: Heartbeat["backend_capacity"]["slots"][number]["state"];
  }): void {
    this.send({
      type: "heartbeat",
      seq: input.seq ?? Date.now(),
      status: "idle",
      stats: { requests_served: 0, tokens_generated: 0 },
      system_metrics: { memory_pressure: 0, cpu_usage: 0, thermal_state: "nominal" },
      backend_capacity: {
        slots: (this.#options.models ?? [scriptedModel("test-model")]).map(({ id }) => ({
          model: id,
          state: input.state ?? "idle",
          num_running: 0,
          num_waiting: 0,
          active_tokens: 0,
          max_tokens_potential: 0,
          max_concurrency: input.concurrency,
        })),
        gpu_memory_active_gb: 0,
        gpu_memory_peak_gb: 0,
        gpu_memory_cache_gb: 0,
        total_memory_gb: 16,
      },
    });
  }

  send(message: ProviderMessage): void {
    this.sendText(encodeMessage(message));
  }

  sendText(text: string): void {
    this.#socket.send(text);
  }

  sendBytes(bytes: Uint8Array): void {
    this.#socket.send(bytes);
  }

  /** Resolves once the coordinator has taken everything sent so far. */
  async sync(): Promise<void> {
    const known = this.messages.length;
    this.sendText('{"type":"are_you_there"}');
    await waitFor("an answer to an unknown message", () =>
      this.messages.slice(known).some(({ type }) => type === "unsupported"),
    );
  }

  /** Stops reading, as a peer that hangs does. */
  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  /** Cuts the connection without a word. */
  terminate(): void {
    this.#socket.terminate();
  }

  close(): void {
    this.#socket.close(1000);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#socket.readyState === WebSocket.CLOSED) return;
    this.#socket.terminate();
    await waitFor("the socket to close", () => this.closed !== null);
  }

  #receive(data: Buffer, isBinary: boolean): void {
    if (isBinary) {
      const bytes = new Uint8Array(data);
      // One after the other, since opening the keys of the first takes a moment.
      this.#frames = this.#frames
        .then(() => this.#takeFrame(bytes))
        .catch((error: unknown) => void this.errors.push(error));
      return;
    }
    const decoded = decodeCoordinatorMessage(data.toString());
    if (!decoded.ok) return void this.errors.push(new Error(`unsupported ${decoded.unsupported}`));
    this.messages.push(decoded.message);
    this.#take(decoded.message);
  }

  #take(message: CoordinatorMessage): void {
    if (message.type === "welcome" || message.type === "attestation_challenge") {
      if (this.#options.answerChallenges !== false)
        this.attest(message.nonce).catch((error: unknown) => void this.errors.push(error));
    } else if (message.type === "inference_request") {
      this.#incoming.set(message.request_id, {
        announcement: message,
        assembler: new RequestAssembler(message),
        ciphers: this.#keys.open({ enc: message.enc, attemptId: message.request_id, modelBuild: message.model }),
      });
    } else if (message.type === "cancel") {
      this.cancels.push(message.request_id);
      for (const job of this.jobs) if (job.id === message.request_id) job.cancelled = true;
    }
  }

  async #takeFrame(bytes: Uint8Array): Promise<void> {
    const frame = decodeFrame(bytes);
    const incoming = this.#incoming.get(frame.attemptId);
    if (incoming === undefined) return;
    const ciphers = await incoming.ciphers;
    incoming.assembler.add(openFrame(ciphers.request, frame));
    if (!incoming.assembler.done) return;
    this.#incoming.delete(frame.attemptId);
    const request = decodeCanonicalChat(incoming.assembler.body());
    const job = new ScriptedJob(this, incoming.announcement, { request, ciphers });
    this.jobs.push(job);
    void Promise.resolve(this.onRequest(job)).catch((error: unknown) => void this.errors.push(error));
  }
}

const helloWorld = (job: ScriptedJob): void => {
  job.accept();
  job.text("Hello", " world");
  job.finish();
};

/** The decoded plaintext of bytes, for canary searches in tests. */
export const asText = (bytes: Uint8Array): string => decoder.decode(bytes);

/** Ids for tests that need some. */
export const testIds = () => createIds(systemRandom());
