/** `darkbloom doctor`: checks this machine, its native library, its model and its coordinator, and says what to type. */
import { existsSync } from "node:fs";
import { basename, join } from "node:path";
import { Command } from "commander";
import { checkSystem, readSystem } from "../ffi/system.ts";
import { environmentName, SETTINGS, yamlName, type Section, type Setting } from "../src/core/config-table.ts";
import { loadConfig, type Config } from "../src/core/config.ts";
import { Fault } from "../src/core/fault.ts";
import { createLog, type Log } from "../src/core/log.ts";
import { formatBytes } from "../src/core/units.ts";
import { defaultContextTokens } from "../src/engine/worker-protocol.ts";
import { checkGguf } from "../src/models/gguf-check.ts";
import { describeGguf } from "../src/models/gguf-describe.ts";
import { memoryFit } from "../src/models/memory.ts";
import { toCoordinatorUrl } from "../src/provider/link/coordinator-url.ts";
import { readState } from "../src/provider/state/state-file.ts";
import { parseJoinToken } from "../src/trust/tokens.ts";
import { fail, pass, renderChecks, runChecks, summarize, warn, type Check, type CheckResult } from "./_checks.ts";
import { emit, type CommandDeps } from "./_deps.ts";
import { programName } from "./_program.ts";
import { engineThreads, wireMachine } from "./_provider.ts";
import { demoModelPath, loadNativeLocation } from "./_wire.ts";

interface DoctorFlags {
  readonly model?: string;
  readonly coordinatorUrl?: string;
  readonly dataDir?: string;
  readonly strict?: true;
  readonly settings?: true;
  readonly json?: true;
}

interface DoctorDeps {
  readonly deps: CommandDeps;
  readonly config: Config;
  readonly log: Log;
}

const SECOND_MS = 1_000;
const MINUTE_MS = 60_000;
/** The library's first use on a machine compiles and tests; that is minutes on a slow one. */
const NATIVE_DEADLINE_MS = 10 * MINUTE_MS;
/** Older than this, a running provider would have written its state again. */
const STATE_FRESH_MS = 30 * SECOND_MS;

const age = (ms: number): string =>
  ms < 2 * MINUTE_MS ? `${Math.round(ms / SECOND_MS)} s ago` : `${Math.round(ms / MINUTE_MS)} min ago`;

const checkPlatform = async (): Promise<CheckResult> => {
  checkSystem(await readSystem());
  return pass(`${process.platform} ${process.arch}`);
};

const checkHardware = async ({ deps, config, log }: DoctorDeps): Promise<CheckResult> => {
  const { hardware } = await wireMachine(deps.clock, log);
  const { cpu_cores: cores } = hardware;
  return pass(
    `${hardware.chip_name}, ${hardware.memory_gb} GB memory, ${cores.total} cores (${cores.performance} fast), ${engineThreads(config, hardware)} engine threads`,
  );
};

const checkNative = async ({ deps, config, log }: DoctorDeps): Promise<CheckResult> => {
  const location = await loadNativeLocation(deps, { config, log });
  const backend = location.cpuBackend === null ? "" : `, CPU backend ${location.cpuBackend} passed its self-test`;
  return pass(`${location.pin}${backend}`);
};

const modelPathOf = async (config: Config): Promise<string> => config.provider.model ?? (await demoModelPath(config));

const checkModel = async ({ config }: DoctorDeps): Promise<CheckResult> => {
  const path = await modelPathOf(config);
  const model = describeGguf(await checkGguf(path));
  const detail = `${basename(path)}: ${model.architecture}, ${model.quantization ?? "unknown quantization"}, context ${model.contextTokens}`;
  if (!model.hasTemplate)
    return warn(`${detail}, no chat template`, "use a model made for chat, or one whose GGUF holds its template");
  return config.provider.model === null
    ? warn(`${detail} (the demo model)`, "name your own with --model")
    : pass(detail);
};

const checkMemory = async ({ deps, config, log }: DoctorDeps): Promise<CheckResult> => {
  const header = await checkGguf(await modelPathOf(config));
  const trained = describeGguf(header).contextTokens;
  const machine = await wireMachine(deps.clock, log);
  const { memoryAvailableBytes: availableBytes } = await machine.readMetrics();
  const contextTokens = config.provider.contextTokens ?? defaultContextTokens(trained);
  const fit = memoryFit({ header, contextTokens, rows: config.provider.rows, availableBytes });
  const detail = `needs ${formatBytes(fit.totalBytes)} (weights ${formatBytes(fit.weightsBytes)}, cache ${formatBytes(fit.kvBytes)} for ${config.provider.rows} × ${contextTokens} tokens), ${formatBytes(availableBytes)} free`;
  if (fit.fits) return pass(detail);
  return fail(
    detail,
    fit.contextTokensMax > 0
      ? `add --ctx ${fit.contextTokensMax}, or use a smaller --parallel`
      : "use a smaller model or quantization",
  );
};

const coordinatorUrlOf = (config: Config): string | null => {
  const { coordinatorUrl, joinToken } = config.provider;
  if (coordinatorUrl !== null) return coordinatorUrl;
  const token = joinToken === null ? null : (parseJoinToken(joinToken).url ?? null);
  return token ?? readState({ dataDir: config.dataDir, nowMs: Date.now() })?.state.coordinator_url ?? null;
};

const checkCoordinator = async ({ config }: DoctorDeps, signal: AbortSignal): Promise<CheckResult> => {
  const named = coordinatorUrlOf(config);
  if (named === null) return pass("none configured (start --local needs none)");
  const { socketUrl } = toCoordinatorUrl(named);
  const health = new URL("/health", socketUrl.replace(/^ws/, "http"));
  try {
    const response = await fetch(health, { signal });
    const body = (await response.json()) as {
      readonly status?: unknown;
      readonly draining?: unknown;
      readonly version?: unknown;
    };
    if (!response.ok || typeof body.status !== "string")
      return fail(`${health.href} is no coordinator`, "check --coordinator-url");
    return body.draining === true
      ? warn(`${health.origin} is draining`, "wait for its restart")
      : pass(`${health.origin} is up, version ${String(body.version)}`);
  } catch (cause) {
    if (signal.aborted) throw cause;
    throw new Fault("coordinator_unreachable", `${health.origin} does not answer`, {
      hint: "check that it runs and that no firewall is in between",
      cause,
    });
  }
};

const checkVerdict = async ({ deps, config }: DoctorDeps): Promise<CheckResult> => {
  const reading = readState({ dataDir: config.dataDir, nowMs: deps.clock.nowMs() });
  const trust = reading?.state.trust ?? null;
  if (trust === null) return pass("no coordinator has judged this provider yet");
  const told = age(deps.clock.nowMs() - Date.parse(trust.at));
  const detail = `${trust.status}, trust level ${trust.trust_level}, told ${told}${trust.reason === null ? "" : ` (${trust.reason})`}`;
  if (trust.status === "online") return pass(detail);
  const compared = trust.seen === null ? "" : `: saw ${trust.seen}, expected ${trust.expected ?? "something else"}`;
  return fail(`${detail}${compared}`, trust.command);
};

const checkDaemon = async ({ deps, config }: DoctorDeps): Promise<CheckResult> => {
  const daemon = daemonOf(deps, config);
  if (daemon === null) return pass("no provider has run in this folder");
  const error = readState({ dataDir: config.dataDir, nowMs: deps.clock.nowMs() })?.state.last_error ?? null;
  const told = error === null ? "" : `, last error ${age(deps.clock.nowMs() - Date.parse(error.at))}: ${error.message}`;
  if (!daemon.running) {
    const last = `not running, last phase ${daemon.phase}, ${age(daemon.age_s * SECOND_MS)}${told}`;
    return error === null ? pass(last) : warn(last, error.hint);
  }
  if (error !== null) return fail(`running, phase ${daemon.phase}${told}`, error.hint);
  const detail = `running, phase ${daemon.phase}, state written ${age(daemon.age_s * SECOND_MS)}`;
  return daemon.stale ? warn(detail, "it may hang: stop it and start it again") : pass(detail);
};

const daemonOf = (deps: CommandDeps, config: Config) => {
  const reading = readState({ dataDir: config.dataDir, nowMs: deps.clock.nowMs() });
  if (reading === null) return null;
  const ended = reading.state.phase === "stopped" || reading.state.phase === "failed";
  const running = !ended && isAlive(reading.state.pid);
  return {
    running,
    stale: running && reading.ageMs > STATE_FRESH_MS,
    age_s: Math.round(reading.ageMs / SECOND_MS),
    phase: reading.state.phase,
  };
};

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return true;
  } catch (thrown) {
    return (thrown as NodeJS.ErrnoException).code === "EPERM";
  }
};

const checksOf = (wiring: DoctorDeps): readonly Check[] => {
  const check = (section: string, id: string, deadlineMs: number, probe: Check["probe"]): Check => ({
    section,
    id,
    deadlineMs,
    probe,
  });
  return [
    check("This machine", "platform", 10 * SECOND_MS, checkPlatform),
    check("This machine", "hardware", 15 * SECOND_MS, () => checkHardware(wiring)),
    check("This machine", "native library", NATIVE_DEADLINE_MS, () => checkNative(wiring)),
    check("Model", "file", 60 * SECOND_MS, () => checkModel(wiring)),
    check("Model", "memory", 60 * SECOND_MS, () => checkMemory(wiring)),
    check("Provider", "process", 5 * SECOND_MS, () => checkDaemon(wiring)),
    check("Coordinator", "reachable", 5 * SECOND_MS, (signal) => checkCoordinator(wiring, signal)),
    check("Coordinator", "verdict", 5 * SECOND_MS, () => checkVerdict(wiring)),
  ];
};

const shown = (setting: Setting, value: unknown): string =>
  value === null
    ? "(unset)"
    : setting.secret === true
      ? "(set)"
      : Array.isArray(value)
        ? value.join(",") || "(none)"
        : JSON.stringify(value).replaceAll('"', "");

const settingLine = (section: Section, key: string, setting: Setting, value: unknown): string =>
  `  ${yamlName(key)} = ${shown(setting, value)}\n      ${setting.description} (${environmentName(section, key)})`;

const settingsText = (config: Config): string => {
  const lines: string[] = [];
  for (const section of Object.keys(SETTINGS) as Section[]) {
    const values: Readonly<Record<string, unknown>> = config[section];
    const settings: Readonly<Record<string, Setting>> = SETTINGS[section];
    lines.push("", section);
    for (const [key, setting] of Object.entries(settings)) lines.push(settingLine(section, key, setting, values[key]));
  }
  return lines.slice(1).join("\n");
};

const doctor = async (deps: CommandDeps, flags: DoctorFlags): Promise<void> => {
  const json = flags.json ?? false;
  const config = loadConfig({
    dataDir: flags.dataDir,
    environment: deps.environment,
    flags: { provider: { model: flags.model, coordinatorUrl: flags.coordinatorUrl } },
  });
  if (flags.settings === true) {
    deps.stdout(`${settingsText(config)}\n`);
    return;
  }
  const log = createLog({ clock: deps.clock, level: "error", format: json ? "json" : "text", write: deps.stderr });
  const checks = await runChecks(deps.clock, checksOf({ deps, config, log }));
  const summary = summarize(checks);
  const generated_at = new Date(deps.clock.nowMs()).toISOString();
  const report = { version: deps.version, generated_at, daemon: daemonOf(deps, config), checks, summary };
  emit(deps, json, report, () => {
    const yaml = join(config.dataDir, "provider.yaml");
    const settings = existsSync(yaml) ? yaml : "defaults";
    return `darkbloom ${deps.version}, settings: ${settings} (all of them: ${programName()} doctor --settings)\n\n${renderChecks(checks)}`;
  });
  const wrong = summary.fail + (flags.strict === true ? summary.warn : 0);
  if (wrong === 0) return;
  const fixes = checks.filter(({ status }) => status === "fail").map((check) => check.fix);
  const fix = fixes.length === 1 ? fixes[0] : "each failed check above names what to do";
  throw new Fault("checks_failed", `${wrong} of ${checks.length} checks did not pass`, fix ? { hint: fix } : {});
};

export const doctorCommand = (deps: CommandDeps): Command =>
  new Command("doctor")
    .description("check this machine, its model and its coordinator")
    .option("--model <file>", "GGUF file to check (default: the configured one, else the demo model)")
    .option("--coordinator-url <url>", "coordinator to check (default: the configured one)")
    .option("--data-dir <folder>", "folder of all state (default ~/.darkbloom)")
    .option("--strict", "warnings count as failures")
    .option("--settings", "list every setting with its value and meaning")
    .option("--json", "print one JSON object")
    .action((flags: DoctorFlags) => doctor(deps, flags));
