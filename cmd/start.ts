/** `darkbloom start`: serves a model to a coordinator or, with --local, to this machine; a parent watches over the child that does. */
import { existsSync } from "node:fs";
import { Command } from "commander";
import type { NativeLocation } from "../ffi/location.ts";
import { loadConfig, type Config } from "../src/core/config.ts";
import { Fault } from "../src/core/fault.ts";
import { toCliText } from "../src/core/fault-render.ts";
import type { Log } from "../src/core/log.ts";
import { leaveFolder, type ProviderEnd, type ProviderEvents } from "../src/provider/lifecycle.ts";
import { startLocalProvider } from "../src/provider/local/local-provider.ts";
import { startProvider } from "../src/provider/provider.ts";
import { providerIdOf } from "../src/trust/provider-id.ts";
import { makeDataDir } from "./_coordinator.ts";
import { emit, ExitWith, type CommandDeps } from "./_deps.ts";
import { settingOption } from "./_options.ts";
import { curlLine, sdkLines } from "./_program.ts";
import { clearedBy, createProgress } from "./_progress.ts";
import {
  modelIdOf,
  openIdentity,
  requireModelPath,
  systemFacts,
  toServedModel,
  wireMachine,
  type EngineWiring,
} from "./_provider.ts";
import { superviseStart } from "./_supervise.ts";
import { wireLog } from "./_wire.ts";

export interface StartFlags {
  readonly local?: true;
  readonly coordinatorUrl?: string;
  readonly join?: string;
  readonly model?: string;
  readonly id?: string;
  readonly port?: number;
  readonly dataDir?: string;
  readonly ctx?: number;
  readonly parallel?: number;
  readonly threads?: number;
  readonly gpuLayers?: number;
  readonly force?: true;
  readonly supervised?: true;
  readonly json?: true;
}

/** A running provider of either kind, as far as its end matters here. */
interface Running {
  readonly ended: Promise<ProviderEnd>;
  stop(options: { readonly graceMs: number }): Promise<void>;
}

interface StartWiring {
  readonly deps: CommandDeps;
  readonly config: Config;
  readonly log: Log;
  readonly json: boolean;
  readonly engine: EngineWiring;
  readonly events: ProviderEvents;
  /** Libraries of the loaded engine; null before. */
  readonly native: () => NativeLocation | null;
}

const readConfig = (deps: CommandDeps, flags: StartFlags): Config =>
  loadConfig({
    dataDir: flags.dataDir,
    environment: deps.environment,
    flags: {
      provider: {
        coordinatorUrl: flags.coordinatorUrl,
        joinToken: flags.join,
        model: flags.model,
        contextTokens: flags.ctx,
        rows: flags.parallel,
        threads: flags.threads,
        gpuLayers: flags.gpuLayers,
        localPort: flags.port,
      },
    },
  });

/** What can be known to be wrong before anything is started. */
const checkStart = (flags: StartFlags, config: Config): string => {
  if (flags.local === true && (flags.coordinatorUrl !== undefined || flags.join !== undefined))
    throw new Fault("usage", "--local serves this machine only and takes no coordinator", {
      hint: "leave out --local, or --coordinator-url and --join",
    });
  if (flags.local !== true && config.provider.coordinatorUrl === null && config.provider.joinToken === null)
    throw new Fault("usage", "neither a coordinator nor --local is given", {
      hint: "add --local to serve this machine, or --join <token> of a coordinator",
    });
  if (flags.local !== true && config.provider.joinToken === null)
    throw new Fault("usage", "no join token is given", {
      hint: "add --join <token>; the coordinator's owner makes one with: darkbloom join-token create",
    });
  const modelPath = requireModelPath(config);
  modelIdOf(modelPath, flags.id);
  if (!existsSync(modelPath))
    throw new Fault("file_missing", `there is no model file ${modelPath}`, { hint: "check --model" });
  return modelPath;
};

const wireStart = async (deps: CommandDeps, flags: StartFlags, config: Config): Promise<StartWiring> => {
  const json = flags.json ?? false;
  const progress = createProgress(deps, json);
  const log = wireLog(clearedBy(deps, progress), config, json);
  let native: NativeLocation | null = null;
  const modelPath = checkStart(flags, config);
  const engine = {
    deps,
    config,
    log,
    modelPath,
    id: modelIdOf(modelPath, flags.id),
    machine: await wireMachine(deps.clock, log),
    onProgress: (step: string) => progress.step(step),
    onNative: (location: NativeLocation) => {
      native = location;
    },
  };
  const events: ProviderEvents = {
    onPhase: (phase) => {
      // "stopped" is the last line; a load that it cuts off says nothing more.
      if (deps.signals.stopping.aborted) return;
      if (json) emit(deps, json, { event: "phase", phase }, () => "");
      else progress.step(phase);
    },
    onServing: (serving) => {
      progress.clear();
      emit(
        deps,
        json,
        { event: "serving", ...serving },
        () =>
          `serving ${serving.models.join(", ")} as ${serving.provider_id} (trust level ${serving.trust_level}); Ctrl-C stops`,
      );
    },
    onFault: (fault) => {
      if (json || !deps.isTty) {
        const { code, reason, message, hint } = fault;
        log.warn("provider_fault", { fault: code, reason, message, hint });
        return;
      }
      progress.clear();
      deps.stderr(`${toCliText(fault)}\n`);
    },
  };
  return { deps, config, log, json, engine, events, native: () => native };
};

const startLocal = async (wiring: StartWiring): Promise<Running> => {
  const { deps, config, log, json, engine, events } = wiring;
  const signer = await openIdentity(config.dataDir);
  return startLocalProvider(
    { ...deps, log },
    {
      dataDir: config.dataDir,
      version: deps.version,
      host: config.provider.localHost,
      port: config.provider.localPort,
      providerId: providerIdOf(signer.publicKey),
      model: toServedModel(engine),
      events,
      onListening: (listening) =>
        emit(deps, json, { event: "listening", ...listening }, () => {
          const target = { url: listening.url, key: listening.api_key, model: engine.id };
          return [`listening on ${listening.url}`, "", curlLine(target), "", sdkLines(target), ""].join("\n");
        }),
    },
  );
};

const startCoordinated = async (wiring: StartWiring): Promise<Running> => {
  const { deps, config, log, engine, events, native } = wiring;
  const { machine } = engine;
  const facts = await systemFacts();
  return startProvider(
    { ...deps, log, signer: await openIdentity(config.dataDir), readMetrics: () => machine.readMetrics() },
    {
      dataDir: config.dataDir,
      version: deps.version,
      coordinatorUrl: config.provider.coordinatorUrl,
      joinToken: config.provider.joinToken,
      hardware: machine.hardware,
      system: () => facts(native()),
      model: toServedModel(engine),
      events,
    },
  );
};

/** The child holds this pipe of its parent; its end means that the parent is gone, however it went. */
const parentGone = async (): Promise<void> => {
  for await (const _ of Bun.stdin.stream());
};

/** The child: serves until a signal, until its parent is gone, or until the provider can do no more. */
const serve = async (deps: CommandDeps, flags: StartFlags): Promise<void> => {
  const config = readConfig(deps, flags);
  makeDataDir(config.dataDir);
  const wiring = await wireStart(deps, flags, config);
  const stopped = Promise.race([deps.signals.untilStop(), ...(flags.supervised === true ? [parentGone()] : [])]);
  const starting = flags.local === true ? startLocal(wiring) : startCoordinated(wiring);
  // A signal during a long load must not wait for it: the process ends, and with it the load.
  const provider = await Promise.race([starting, stopped.then(() => null)]);
  const end = provider === null ? null : await Promise.race([stopped.then(() => null), provider.ended]);
  if (provider === null) leaveFolder(deps.clock, config.dataDir);
  await provider?.stop({ graceMs: end === null ? config.provider.stopMs : 0 });
  if (end !== null) {
    wiring.log.error("provider_ended", { fault: end.fault.code, message: end.fault.message });
    throw new ExitWith(end.exitCode);
  }
  emit(deps, wiring.json, { event: "stopped" }, () => "stopped");
};

const start = async (deps: CommandDeps, flags: StartFlags): Promise<void> => {
  if (flags.supervised === true) return serve(deps, flags);
  const config = readConfig(deps, flags);
  checkStart(flags, config);
  makeDataDir(config.dataDir);
  return superviseStart(deps, flags, config);
};

export const startCommand = (deps: CommandDeps): Command => {
  const command = new Command("start")
    .description("serve a model: to a coordinator, or with --local to this machine")
    .option("--local", "serve an OpenAI endpoint on this machine only");
  settingOption(command, "--port <number>", "provider", "localPort");
  settingOption(command, "--coordinator-url <url>", "provider", "coordinatorUrl");
  settingOption(command, "--join <token>", "provider", "joinToken");
  settingOption(command, "--model <file>", "provider", "model");
  command
    .option("--id <id>", "id under which it is served (default: the file name without .gguf)")
    .option("--data-dir <folder>", "folder of all state (default ~/.darkbloom)");
  settingOption(command, "--ctx <tokens>", "provider", "contextTokens");
  settingOption(command, "--parallel <number>", "provider", "rows");
  settingOption(command, "--threads <number>", "provider", "threads");
  settingOption(command, "--gpu-layers <number>", "provider", "gpuLayers");
  command
    .option("--force", "load a model again that crashed before")
    .option("--json", "print events as JSON lines")
    .addOption(command.createOption("--supervised", "run as the child").hideHelp());
  return command.action((flags: StartFlags) => start(deps, flags));
};
