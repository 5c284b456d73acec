/** `darkbloom demo`: a coordinator, a provider with the demo model and a first sealed chat, all in this process. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Command } from "commander";
import type { NativeLocation } from "../ffi/location.ts";
import type { Coordinator } from "../src/coordinator/coordinator.ts";
import { loadConfig, type Config } from "../src/core/config.ts";
import { Fault } from "../src/core/fault.ts";
import { createLog, type Log } from "../src/core/log.ts";
import { startProvider, type Provider } from "../src/provider/provider.ts";
import { askChat, type ChatAnswer } from "./_chat-client.ts";
import { wireAdmin, wireCoordinator } from "./_coordinator.ts";
import { emit, type CommandDeps } from "./_deps.ts";
import { integerOption } from "./_options.ts";
import { curlLine, programName, sdkLines } from "./_program.ts";
import { clearedBy, createProgress, type Progress } from "./_progress.ts";
import { openIdentity, systemFacts, toServedModel, wireMachine } from "./_provider.ts";
import { DEMO_MODEL_ID, demoModelPath } from "./_wire.ts";

interface DemoFlags {
  readonly once?: true;
  readonly json?: true;
  readonly port: number;
}

const QUESTION = "Tell me a story about a fox.";
/** First use on a slow machine compiles the shim and tests CPU backends; after that it is seconds. */
const START_DEADLINE_MS = 600_000;
const STOP_MS = 2_000;

interface Network extends AsyncDisposable {
  readonly coordinator: Coordinator;
  readonly provider: Provider;
  readonly key: string;
}

/** Everything the demo writes goes into a folder of its own, which ends with it. */
const demoConfig = async (deps: CommandDeps, port: number): Promise<Config> => {
  const config = loadConfig({ environment: deps.environment });
  const dataDir = await mkdtemp(join(tmpdir(), "darkbloom-demo-"));
  const coordinator = { ...config.coordinator, host: "127.0.0.1", port, tlsCert: null, tlsKey: null, publicUrl: null };
  return { ...config, dataDir, coordinator };
};

const serveModel = async (
  deps: CommandDeps,
  config: Config,
  tools: { readonly log: Log; readonly progress: Progress; readonly joinToken: string },
): Promise<Provider> => {
  const { log, progress, joinToken } = tools;
  const machine = await wireMachine(deps.clock, log);
  const facts = await systemFacts();
  let native: NativeLocation | null = null;
  const serving = Promise.withResolvers<void>();
  const provider = await startProvider(
    { ...deps, log, signer: await openIdentity(config.dataDir), readMetrics: () => machine.readMetrics() },
    {
      dataDir: config.dataDir,
      version: deps.version,
      coordinatorUrl: null,
      joinToken,
      hardware: machine.hardware,
      system: () => facts(native),
      model: toServedModel({
        deps,
        config,
        log,
        machine,
        id: DEMO_MODEL_ID,
        modelPath: await demoModelPath(config),
        onProgress: (step) => progress.step(step),
        onNative: (location) => (native = location),
      }),
      events: {
        onPhase: (phase) => progress.step(phase),
        onServing: () => serving.resolve(),
        onFault: (fault) => serving.reject(fault),
      },
    },
  );
  await Promise.race([serving.promise, provider.ended.then(({ fault }) => Promise.reject(fault))]);
  return provider;
};

const startNetwork = async (deps: CommandDeps, config: Config, log: Log, progress: Progress): Promise<Network> => {
  progress.step("starting the coordinator");
  const coordinator = await wireCoordinator(deps, config, log);
  try {
    using admin = await wireAdmin(deps, config);
    const { key } = await admin.createKey({ name: "demo" });
    const { token } = await admin.createJoinToken({});
    const provider = await serveModel(deps, config, { log, progress, joinToken: token });
    return {
      coordinator,
      provider,
      key,
      async [Symbol.asyncDispose]() {
        await provider.stop({ graceMs: STOP_MS });
        await coordinator.stop();
      },
    };
  } catch (thrown) {
    await coordinator.stop();
    throw thrown;
  }
};

const toResult = (answer: ChatAnswer, provider: Provider) => ({
  answer: answer.text,
  prompt_tokens: answer.promptTokens,
  completion_tokens: answer.completionTokens,
  ttft_ms: Math.round(answer.ttftMs * 10) / 10,
  // The first token ends the wait for it, so n − 1 tokens fall into the decode time.
  decode_tps: Math.round(((answer.completionTokens - 1) / Math.max(answer.decodeMs, 0.01)) * 1000),
  provider_id: answer.headers.get("x-provider-id") ?? provider.id,
  trust_level: answer.headers.get("x-provider-trust-level") ?? "none",
  sealed: answer.headers.get("x-provider-encrypted") === "true",
});

const summaryText = (result: ReturnType<typeof toResult>): string =>
  [
    "",
    "",
    `  ${result.completion_tokens} tokens, ${result.decode_tps} tokens/s, first after ${result.ttft_ms} ms`,
    result.sealed
      ? `  prompt and answer were sealed between coordinator and provider (HPKE X25519, AES-256-GCM)`
      : `  prompt and answer were NOT sealed`,
    `  served by ${result.provider_id}, trust level ${result.trust_level}`,
  ].join("\n");

const keepServing = async (deps: CommandDeps, network: Network, json: boolean): Promise<void> => {
  const target = { url: network.coordinator.url, key: network.key, model: DEMO_MODEL_ID };
  const listening = { event: "listening", url: target.url, api_key: target.key, model: target.model };
  emit(deps, json, listening, () =>
    [
      "",
      "It keeps serving. Ask it from another terminal:",
      "",
      curlLine(target),
      "",
      "or with the openai package:",
      "",
      sdkLines(target),
      "",
      `Your own model: ${programName()} start --local --model <file.gguf>`,
      "Ctrl-C stops it.",
    ].join("\n"),
  );
  const ended = network.provider.ended.then(({ fault }) => Promise.reject(fault));
  await Promise.race([deps.signals.untilStop(), ended]);
  emit(deps, json, { event: "stopped" }, () => "stopped");
};

const runDemo = async (deps: CommandDeps, flags: DemoFlags, config: Config, onAnswered: () => void): Promise<void> => {
  const json = flags.json ?? false;
  const level = config.common.logLevel === "info" ? "warn" : config.common.logLevel;
  const progress = createProgress(deps, json);
  const { stderr: write } = clearedBy(deps, progress);
  const log = createLog({ clock: deps.clock, level, format: json ? "json" : "text", write });
  await using network = await startNetwork(deps, config, log, progress);
  progress.clear();
  if (!json) deps.stdout(`\n> ${QUESTION}\n\n  `);
  const answer = await askChat({
    url: network.coordinator.url,
    key: network.key,
    model: DEMO_MODEL_ID,
    content: QUESTION,
    nowMs: () => deps.clock.monotonicMs(),
    onText: (text) => (json ? undefined : deps.stdout(text)),
    signal: deps.signals.stopping,
  });
  onAnswered();
  const result = toResult(answer, network.provider);
  emit(deps, json, result, () => summaryText(result));
  if (flags.once !== true) await keepServing(deps, network, json);
};

const demo = async (deps: CommandDeps, flags: DemoFlags): Promise<void> => {
  const config = await demoConfig(deps, flags.port);
  const { stopping } = deps.signals;
  const { promise: cutShort, reject } = Promise.withResolvers<never>();
  const interrupt = (): void => reject(stopping.reason as Error);
  stopping.addEventListener("abort", interrupt);
  const late = new Fault("timeout", "the demo did not start in time", { hint: `run: ${programName()} doctor` });
  const timer = deps.clock.after(START_DEADLINE_MS, () => reject(late));
  // From the answer on there is no deadline, and a signal ends it normally.
  const onAnswered = (): void => {
    timer.cancel();
    stopping.removeEventListener("abort", interrupt);
  };
  try {
    await Promise.race([runDemo(deps, flags, config, onAnswered), cutShort]);
  } finally {
    onAnswered();
    await rm(config.dataDir, { recursive: true, force: true });
  }
};

export const demoCommand = (deps: CommandDeps): Command =>
  new Command("demo")
    .description("coordinator, provider with a small model, and a first sealed chat on this machine")
    .option("--once", "exit after the answer")
    .option("--port <number>", "port of the API, 0 = any free one", integerOption("--port", 0, 65_535), 0)
    .option("--json", "print one JSON object")
    .action((flags: DemoFlags) => demo(deps, flags));
