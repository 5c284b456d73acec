/** `darkbloom serve-coordinator`: runs the coordinator in the foreground until a signal drains it. */
import { Command } from "commander";
import type { Coordinator } from "../src/coordinator/coordinator.ts";
import { loadConfig, type Config } from "../src/core/config.ts";
import { emit, type CommandDeps } from "./_deps.ts";
import { wireAdmin, wireCoordinator } from "./_coordinator.ts";
import { settingOption } from "./_options.ts";
import { curlLine, programName, shellWord } from "./_program.ts";
import { wireLog } from "./_wire.ts";

interface ServeFlags {
  readonly host?: string;
  readonly port?: number;
  readonly dataDir?: string;
  readonly publicUrl?: string;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly insecureLan?: true;
  readonly trustedProxies?: readonly string[];
  readonly minTrust?: "none" | "self_signed" | "hardware";
  readonly json?: true;
}

/** A person at the terminal waits for Ctrl-C; a service manager's SIGTERM may take the whole drain window. */
const INTERRUPT_DRAIN_MS = 3_000;

/** Secrets are shown once, so a ready line can be printed only while there is none yet. */
const readyLines = async (deps: CommandDeps, config: Config, coordinator: Coordinator): Promise<string> => {
  using admin = await wireAdmin(deps, config);
  const [keys, tokens] = [await admin.listKeys(), await admin.listJoinTokens()];
  const program = programName();
  const data = ` --data-dir ${shellWord(config.dataDir)}`;
  const key = keys.some(({ disabled }) => !disabled)
    ? "$DARKBLOOM_KEY"
    : (await admin.createKey({ name: "first" })).key;
  const join = tokens.some(({ disabled }) => !disabled) ? "$DARKBLOOM_JOIN" : (await admin.createJoinToken({})).token;
  const more = [
    ...(key.startsWith("$") ? [`A new key:        ${program} keys create --name me${data}`] : []),
    ...(join.startsWith("$") ? [`A new join token: ${program} join-token create${data}`] : []),
  ];
  return [
    `coordinator listening on ${coordinator.url}`,
    "",
    "On each machine that serves a model:",
    `  ${program} start --coordinator-url ${coordinator.providerUrl} --join ${join} --model <file.gguf>`,
    "",
    "Ask it something:",
    `  ${curlLine({ url: coordinator.url, key, model: "<model id>" })}`,
    "",
    ...more,
    "Ctrl-C stops it.",
  ].join("\n");
};

const serve = async (deps: CommandDeps, flags: ServeFlags): Promise<void> => {
  const json = flags.json ?? false;
  const config = loadConfig({ dataDir: flags.dataDir, flags: { coordinator: flags }, environment: deps.environment });
  const stopped = deps.signals.untilStop();
  const log = wireLog(deps, config, json);
  const coordinator = await wireCoordinator(deps, config, log);
  log.info("coordinator_listening", { url: coordinator.url });
  const listening = { event: "listening", url: coordinator.url, provider_url: coordinator.providerUrl };
  const text = json ? "" : await readyLines(deps, config, coordinator);
  emit(deps, json, listening, () => text);
  const signal = await stopped;
  log.info("coordinator_draining", { signal });
  await coordinator.drain(signal === "SIGTERM" ? config.coordinator.drainMs : INTERRUPT_DRAIN_MS);
  emit(deps, json, { event: "stopped" }, () => "stopped");
};

export const serveCoordinatorCommand = (deps: CommandDeps): Command => {
  const command = new Command("serve-coordinator").description("run the coordinator in the foreground");
  settingOption(command, "--host <address>", "coordinator", "host");
  settingOption(command, "--port <number>", "coordinator", "port");
  command.option("--data-dir <folder>", "folder of all state (default ~/.darkbloom)");
  settingOption(command, "--public-url <url>", "coordinator", "publicUrl");
  settingOption(command, "--tls-cert <file>", "coordinator", "tlsCert");
  settingOption(command, "--tls-key <file>", "coordinator", "tlsKey");
  settingOption(command, "--insecure-lan", "coordinator", "insecureLan");
  settingOption(command, "--trusted-proxies <list>", "coordinator", "trustedProxies");
  settingOption(command, "--min-trust <level>", "coordinator", "minTrust");
  return command.option("--json", "print events as JSON lines").action((flags: ServeFlags) => serve(deps, flags));
};
