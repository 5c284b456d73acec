/** A coordinator and providers as processes of their own, each run the way an owner runs it, with a deadline on every wait. */
import { streamChat, type StreamRequest, type StreamResult } from "./chat-stream.ts";
import { DEMO_MODEL } from "./native.ts";
import { runDarkbloom, startDarkbloom, type DarkbloomProcess, type ProcessOptions } from "./darkbloom-process.ts";

export { DEMO_MODEL };

export interface RunningCoordinator extends AsyncDisposable {
  readonly process: DarkbloomProcess;
  readonly dataDir: string;
  /** Without `/v1`. */
  readonly url: string;
  readonly providerUrl: string;
  readonly port: number;
}

export interface CoordinatorInput extends ProcessOptions {
  readonly dataDir: string;
  /** Absent = any free one. */
  readonly port?: number;
  readonly args?: readonly string[];
}

export const serveCoordinator = async (input: CoordinatorInput): Promise<RunningCoordinator> => {
  const { dataDir, port = 0, args = [] } = input;
  const started = startDarkbloom(
    ["serve-coordinator", "--json", "--port", String(port), "--data-dir", dataDir, ...args],
    input,
  );
  const listening = await started.event("listening");
  const url = String(listening["url"]);
  return {
    process: started,
    dataDir,
    url,
    providerUrl: String(listening["provider_url"]),
    port: Number(new URL(url).port),
    [Symbol.asyncDispose]: () => started[Symbol.asyncDispose](),
  };
};

/** One JSON line of a command that must succeed. */
const oneLine = async (args: readonly string[]): Promise<Readonly<Record<string, unknown>>> => {
  const { code, lines, stdout, stderr } = await runDarkbloom([...args, "--json"]);
  if (code !== 0 || lines[0] === undefined)
    throw new Error(`${args.join(" ")} ended with ${code}:\n${stdout}${stderr}`);
  return lines[0];
};

export const createKey = async (dataDir: string): Promise<{ readonly key: string; readonly id: string }> => {
  const line = await oneLine(["keys", "create", "--name", "test", "--data-dir", dataDir]);
  return { key: String(line["key"]), id: String(line["id"]) };
};

export const createJoinToken = async (dataDir: string): Promise<{ readonly token: string; readonly id: string }> => {
  const line = await oneLine(["join-token", "create", "--data-dir", dataDir]);
  return { token: String(line["token"]), id: String(line["id"]) };
};

export interface ProviderInput extends ProcessOptions {
  readonly dataDir: string;
  readonly coordinatorUrl: string;
  readonly token: string;
  readonly args?: readonly string[];
}

/** Id under which these providers serve the demo model. */
export const MODEL_ID = "demo";

export const startProviderProcess = (input: ProviderInput): DarkbloomProcess => {
  const { dataDir, coordinatorUrl, token, args = [] } = input;
  const where = ["--coordinator-url", coordinatorUrl, "--join", token, "--data-dir", dataDir];
  return startDarkbloom(["start", "--json", ...where, "--model", DEMO_MODEL, "--id", MODEL_ID, ...args], input);
};

/** Lets a stream go on for longer than any test: the demo model's own context is over in half a second. */
export const LONG_CONTEXT: readonly string[] = ["--ctx", "32768"];

export interface RunningNetwork extends AsyncDisposable {
  readonly coordinator: RunningCoordinator;
  readonly provider: DarkbloomProcess;
  readonly providerDir: string;
  readonly key: string;
  readonly token: string;
}

/** One coordinator and one provider that serves, in folders `<root>-c` and `<root>-p`. */
export const startNetwork = async (root: string, options: ProcessOptions = {}): Promise<RunningNetwork> => {
  const coordinator = await serveCoordinator({ ...options, dataDir: `${root}-c` });
  const { key } = await createKey(coordinator.dataDir);
  const { token } = await createJoinToken(coordinator.dataDir);
  const providerDir = `${root}-p`;
  const where = { dataDir: providerDir, coordinatorUrl: coordinator.url, token, args: LONG_CONTEXT };
  const provider = startProviderProcess({ ...options, ...where });
  await provider.event("serving");
  return {
    coordinator,
    provider,
    providerDir,
    key,
    token,
    async [Symbol.asyncDispose]() {
      await provider[Symbol.asyncDispose]();
      await coordinator[Symbol.asyncDispose]();
    },
  };
};

/** A short chat whose answer is known. */
export const capitalQuestion = (model = MODEL_ID): Record<string, unknown> => ({
  model,
  messages: [{ role: "user", content: "What is the capital of France?" }],
  temperature: 0,
});

export interface LongStream {
  readonly result: Promise<StreamResult>;
  /** Settles once text comes. */
  readonly started: Promise<void>;
}

/** A stream that only a stop, a crash or the context's end can end. */
export const longStream = (request: StreamRequest): LongStream => {
  const { promise, resolve } = Promise.withResolvers<void>();
  const result = streamChat({
    ...request,
    body: { ...request.body, max_tokens: 32_000, ignore_eos: true },
    onChunk: (chunk) => chunk.choices?.[0]?.delta.content && resolve(),
  });
  return { result, started: Promise.race([promise, result.then(() => undefined)]) };
};

/** Prepares the native library of this machine, which may take a minute the first time, so that later waits can be short. */
export { nativeForTests as warmUpNative } from "./native.ts";
