/** Reads flags, environment and YAML into one frozen value; flags win over the environment, that over the file, that over the default. */
import { existsSync, readFileSync, statSync } from "node:fs";
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import { parse } from "yaml";
import { environmentName, SETTINGS, yamlName, type Section, type SectionValues, type Setting } from "./config-table.ts";
import type { Environment } from "./config-environment.ts";
import { Fault } from "./fault.ts";
import { CONFIG_BYTES_MAX } from "./limits.ts";

export interface Config {
  /** Folder of all state: `--data-dir`, else DARKBLOOM_HOME, else `~/.darkbloom`. */
  readonly dataDir: string;
  /** Folder of content-addressed files that can be made again: `${XDG_CACHE_HOME:-~/.cache}/darkbloom`. */
  readonly cacheDir: string;
  readonly common: SectionValues<"common">;
  readonly coordinator: SectionValues<"coordinator">;
  readonly provider: SectionValues<"provider">;
}

/** Values of flags, by section and key; undefined = flag not given. */
export type Flags = {
  readonly [N in Section]?: { readonly [K in keyof SectionValues<N>]?: SectionValues<N>[K] | undefined };
};

export interface ConfigSources {
  readonly dataDir?: string | undefined;
  readonly flags?: Flags;
  readonly environment: Environment;
}

/** Where a value came from that was given as a flag. */
const FLAG = "flag";

const invalid = (where: string, setting: Setting, key: string): Fault => {
  const wanted =
    setting.type === "integer"
      ? `a whole number from ${setting.min} to ${setting.max}`
      : setting.type === "choice"
        ? `one of ${setting.choices.join(", ")}`
        : setting.type === "switch"
          ? "true or false"
          : setting.type === "list"
            ? "a list of texts (comma-separated in the environment)"
            : "a text";
  return new Fault(where === FLAG ? "usage" : "config_invalid", `${where}: ${key} must be ${wanted}`, {
    hint: "correct it or remove it to use the default",
  });
};

/** Accepts both YAML's typed values and the environment's texts. */
const toValue = (setting: Setting, raw: unknown): unknown => {
  switch (setting.type) {
    case "integer": {
      const value = typeof raw === "string" && /^-?\d+$/.test(raw.trim()) ? Number(raw) : raw;
      return Number.isSafeInteger(value) && (value as number) >= setting.min && (value as number) <= setting.max
        ? value
        : undefined;
    }
    case "switch":
      if (typeof raw === "boolean") return raw;
      return raw === "true" || raw === "1" ? true : raw === "false" || raw === "0" ? false : undefined;
    case "choice":
      return typeof raw === "string" && setting.choices.includes(raw) ? raw : undefined;
    case "list": {
      const items =
        typeof raw === "string"
          ? raw
              .split(",")
              .map((item) => item.trim())
              .filter(Boolean)
          : raw;
      return Array.isArray(items) && items.every((item) => typeof item === "string")
        ? Object.freeze([...items])
        : undefined;
    }
    case "text":
      return typeof raw === "string" && raw !== "" ? raw : undefined;
  }
};

const readYaml = (path: string): Record<string, unknown> => {
  if (!existsSync(path)) return {};
  if (statSync(path).size > CONFIG_BYTES_MAX)
    throw new Fault("config_invalid", `${path} is larger than ${CONFIG_BYTES_MAX} bytes`);
  let parsed: unknown;
  try {
    parsed = parse(readFileSync(path, "utf8"), { maxAliasCount: 0 });
  } catch (cause) {
    throw new Fault("config_invalid", `${path} is not valid YAML`, {
      hint: "compare it with the settings in the README",
      cause,
    });
  }
  if (parsed === null || parsed === undefined) return {};
  if (typeof parsed !== "object" || Array.isArray(parsed))
    throw new Fault("config_invalid", `${path} must hold settings as key: value`);
  return parsed as Record<string, unknown>;
};

const readSection = <N extends Section>(
  section: N,
  sources: ConfigSources,
  yamlPaths: readonly string[],
): SectionValues<N> => {
  const settings: Readonly<Record<string, Setting>> = SETTINGS[section];
  const flags = (sources.flags?.[section] ?? {}) as Readonly<Record<string, unknown>>;
  const files = yamlPaths.map((path) => ({ path, values: readYaml(path) }));
  const values: Record<string, unknown> = {};
  for (const [key, setting] of Object.entries(settings)) {
    const name = environmentName(section, key);
    const file = files.find((candidate) => candidate.values[yamlName(key)] !== undefined);
    const [where, raw] =
      flags[key] !== undefined
        ? [FLAG, flags[key]]
        : sources.environment[name] !== undefined && sources.environment[name] !== ""
          ? [`environment ${name}`, sources.environment[name]]
          : file === undefined
            ? [null, setting.default]
            : [file.path, file.values[yamlName(key)]];
    if (where === null) {
      values[key] = raw;
      continue;
    }
    const value = toValue(setting, raw);
    if (value === undefined) throw invalid(where, setting, key);
    values[key] = value;
  }
  return Object.freeze(values) as SectionValues<N>;
};

/** A misspelt key would silently keep its default, so it is refused. */
const refuseUnknownKeys = (path: string, sections: readonly Section[]): void => {
  const known = new Set(sections.flatMap((section) => Object.keys(SETTINGS[section]).map(yamlName)));
  for (const key of Object.keys(readYaml(path)))
    if (!known.has(key))
      throw new Fault("config_invalid", `${path}: unknown setting ${JSON.stringify(key.slice(0, 60))}`, {
        hint: "see `darkbloom doctor --settings` for all settings",
      });
};

/** Precedence: flag > environment > YAML file > default. Throws `config_invalid`, and `usage` for a flag. */
export const loadConfig = (sources: ConfigSources): Config => {
  const { environment } = sources;
  const home = environment["HOME"] ?? homedir();
  const chosen = sources.dataDir ?? environment["DARKBLOOM_HOME"];
  const dataDir = resolve(chosen ?? join(home, ".darkbloom"));
  const yamlDir =
    chosen === undefined ? join(environment["XDG_CONFIG_HOME"] ?? join(home, ".config"), "darkbloom") : dataDir;
  const coordinatorYaml = join(yamlDir, "coordinator.yaml");
  const providerYaml = join(yamlDir, "provider.yaml");
  refuseUnknownKeys(coordinatorYaml, ["common", "coordinator"]);
  refuseUnknownKeys(providerYaml, ["common", "provider"]);
  return Object.freeze({
    dataDir,
    cacheDir: join(environment["XDG_CACHE_HOME"] ?? join(home, ".cache"), "darkbloom"),
    common: readSection("common", sources, [providerYaml, coordinatorYaml]),
    coordinator: readSection("coordinator", sources, [coordinatorYaml]),
    provider: readSection("provider", sources, [providerYaml]),
  });
};
