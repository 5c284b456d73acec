/** Every setting of the program: key, type, default, bounds, meaning. `--help`, `doctor` and the environment names come from here. */

interface SettingBase {
  readonly description: string;
  /** Never printed; shown as `(set)`. */
  readonly secret?: true;
}
export interface TextSetting extends SettingBase {
  readonly type: "text";
  readonly default: string | null;
}
export interface IntegerSetting extends SettingBase {
  readonly type: "integer";
  readonly default: number | null;
  readonly min: number;
  readonly max: number;
}
export interface SwitchSetting extends SettingBase {
  readonly type: "switch";
  readonly default: boolean;
}
export interface ChoiceSetting extends SettingBase {
  readonly type: "choice";
  readonly default: string;
  readonly choices: readonly string[];
}
export interface ListSetting extends SettingBase {
  readonly type: "list";
  readonly default: readonly string[];
}
export type Setting = TextSetting | IntegerSetting | SwitchSetting | ChoiceSetting | ListSetting;

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

/** Sections become YAML files: `common` is read from both, `coordinator` from coordinator.yaml, `provider` from provider.yaml. */
export const SETTINGS = {
  common: {
    logLevel: {
      type: "choice",
      default: "info",
      choices: ["debug", "info", "warn", "error"],
      description: "least severe log line to print",
    },
    logFormat: {
      type: "choice",
      default: "text",
      choices: ["text", "json"],
      description: "shape of log lines on stderr",
    },
    nativeDir: {
      type: "text",
      default: null,
      description: "folder with the llama.cpp libraries to use instead of the packaged ones",
    },
  },
  coordinator: {
    host: { type: "text", default: "127.0.0.1", description: "address to listen on" },
    port: { type: "integer", default: 8080, min: 0, max: 65_535, description: "port to listen on; 0 = any free port" },
    publicUrl: {
      type: "text",
      default: null,
      description: "URL under which providers and consumers reach this coordinator, when it differs from host and port",
    },
    tlsCert: { type: "text", default: null, description: "PEM file with the TLS certificate chain" },
    tlsKey: { type: "text", default: null, description: "PEM file with the TLS private key" },
    insecureLan: { type: "switch", default: false, description: "allow a non-loopback address without TLS" },
    trustedProxies: { type: "list", default: [], description: "addresses whose X-Forwarded-For is believed" },
    corsOrigin: { type: "text", default: null, description: "origin that browsers may call from" },
    minTrust: {
      type: "choice",
      default: "self_signed",
      choices: ["none", "self_signed", "hardware"],
      description: "least trust level of a provider that may serve",
    },
    anonymousProviders: { type: "switch", default: false, description: "let providers connect without a join token" },
    connectionsPerTokenMax: {
      type: "integer",
      default: 64,
      min: 1,
      max: 10_000,
      description: "provider connections per join token",
    },
    connectionsPerIpMax: {
      type: "integer",
      default: 64,
      min: 1,
      max: 10_000,
      description: "provider connections per address",
    },
    heartbeatMs: { type: "integer", default: 5_000, min: 100, max: 60_000, description: "time between heartbeats" },
    pingMs: { type: "integer", default: 10_000, min: 100, max: 60_000, description: "time between WebSocket pings" },
    peerSilenceMs: {
      type: "integer",
      default: 30_000,
      min: 500,
      max: 600_000,
      description: "silence after which a connection is dropped",
    },
    challengeMs: {
      type: "integer",
      default: 300_000,
      min: 1_000,
      max: DAY_MS,
      description: "time between attestation challenges",
    },
    challengeReplyMs: {
      type: "integer",
      default: 30_000,
      min: 100,
      max: 600_000,
      description: "time a provider has to answer a challenge",
    },
    challengeFreshMs: {
      type: "integer",
      default: 960_000,
      min: 1_000,
      max: DAY_MS,
      description: "age up to which an answered challenge counts for routing",
    },
    firstContentBaseMs: {
      type: "integer",
      default: 5_000,
      min: 100,
      max: HOUR_MS,
      description: "time to first content allowed before the prompt is counted",
    },
    firstContentPerTokenMs: {
      type: "integer",
      default: 1,
      min: 0,
      max: 1_000,
      description: "further time to first content per prompt token",
    },
    silenceMs: {
      type: "integer",
      default: 600_000,
      min: 1_000,
      max: DAY_MS,
      description: "silence of an accepted attempt after which it is given up",
    },
    keepAliveMs: {
      type: "integer",
      default: 15_000,
      min: 0,
      max: HOUR_MS,
      description: "silence after which a stream gets keep-alive comments; 0 = never",
    },
    attemptsMax: { type: "integer", default: 3, min: 1, max: 64, description: "providers tried per request" },
    bodyMs: {
      type: "integer",
      default: 30_000,
      min: 100,
      max: HOUR_MS,
      description: "time a consumer has to send its request body",
    },
    drainMs: {
      type: "integer",
      default: 30_000,
      min: 0,
      max: HOUR_MS,
      description: "time running requests get after SIGTERM",
    },
  },
  provider: {
    coordinatorUrl: {
      type: "text",
      default: null,
      description: "coordinator to serve: ws, wss, http or https, with or without path; default the join token's",
    },
    joinToken: { type: "text", default: null, secret: true, description: "join token of that coordinator" },
    model: { type: "text", default: null, description: "GGUF file to serve" },
    contextTokens: {
      type: "integer",
      default: null,
      min: 64,
      max: 16_777_216,
      description: "tokens per request, prompt and answer together; default min(model, 8192)",
    },
    rows: { type: "integer", default: 4, min: 1, max: 256, description: "requests that decode side by side" },
    threads: {
      type: "integer",
      default: null,
      min: 1,
      max: 1_024,
      description: "CPU threads of the engine; default performance cores − 1",
    },
    gpuLayers: {
      type: "integer",
      default: null,
      min: 0,
      max: 100_000,
      description: "model layers on the GPU; default all",
    },
    localHost: { type: "text", default: "127.0.0.1", description: "address of the local endpoint" },
    localPort: { type: "integer", default: 8000, min: 0, max: 65_535, description: "port of the local endpoint" },
    stopMs: {
      type: "integer",
      // Ctrl-C is promised to end within 5 s, with what a busy machine adds to this.
      default: 3_000,
      min: 0,
      max: HOUR_MS,
      description: "time running requests get at a stop",
    },
  },
} as const satisfies Record<string, Record<string, Setting>>;

export type Section = keyof typeof SETTINGS;

type ValueOf<S> = S extends { readonly type: "integer"; readonly default: infer D }
  ? D extends null
    ? number | null
    : number
  : S extends { readonly type: "switch" }
    ? boolean
    : S extends { readonly type: "list" }
      ? readonly string[]
      : S extends { readonly type: "choice"; readonly choices: readonly (infer C)[] }
        ? C
        : S extends { readonly type: "text"; readonly default: null }
          ? string | null
          : string;

export type SectionValues<N extends Section> = {
  readonly [K in keyof (typeof SETTINGS)[N]]: ValueOf<(typeof SETTINGS)[N][K]>;
};

/** `coordinator.tlsCert` → `DARKBLOOM_COORDINATOR_TLS_CERT`; the common section has no infix. */
export const environmentName = (section: Section, key: string): string => {
  const snake = key.replaceAll(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase();
  return section === "common" ? `DARKBLOOM_${snake}` : `DARKBLOOM_${section.toUpperCase()}_${snake}`;
};

/** `tlsCert` → `tls_cert`, the name in YAML files. */
export const yamlName = (key: string): string => key.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
