/** Precedence, types and refusals of the configuration table. */
import { describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { environmentName, SETTINGS, yamlName, type Section } from "../../src/core/config-table.ts";
import { loadConfig } from "../../src/core/config.ts";
import { Fault } from "../../src/core/fault.ts";
import { tempDir } from "../support/temp-dir.ts";

const faultOf = (run: () => unknown): Fault => {
  try {
    run();
  } catch (thrown) {
    if (thrown instanceof Fault) return thrown;
    throw thrown;
  }
  throw new Error("no fault was thrown");
};

describe("config", () => {
  test("flag wins over environment, environment over file, file over default", async () => {
    await using dir = await tempDir();
    const environment = { DARKBLOOM_COORDINATOR_PORT: "2222" };
    const port = (sources: Parameters<typeof loadConfig>[0]): number => loadConfig(sources).coordinator.port;
    expect(port({ dataDir: dir.path, environment: {} })).toBe(8080);
    writeFileSync(join(dir.path, "coordinator.yaml"), "port: 1111\n");
    expect(port({ dataDir: dir.path, environment: {} })).toBe(1111);
    expect(port({ dataDir: dir.path, environment })).toBe(2222);
    expect(port({ dataDir: dir.path, environment, flags: { coordinator: { port: 3333 } } })).toBe(3333);
  });

  test("the home folder comes from the flag, then DARKBLOOM_HOME, then HOME", () => {
    const environment = { HOME: "/home/u", DARKBLOOM_HOME: "/srv/d" };
    expect(loadConfig({ dataDir: "/x", environment }).dataDir).toBe("/x");
    expect(loadConfig({ environment }).dataDir).toBe("/srv/d");
    expect(loadConfig({ environment: { HOME: "/home/u" } }).dataDir).toBe("/home/u/.darkbloom");
    expect(loadConfig({ environment: { HOME: "/home/u" } }).cacheDir).toBe("/home/u/.cache/darkbloom");
    expect(loadConfig({ environment: { HOME: "/h", XDG_CACHE_HOME: "/c" } }).cacheDir).toBe("/c/darkbloom");
  });

  test.each([
    ["port: 70000", "port must be a whole number from 0 to 65535"],
    ["port: 1.5", "port must be a whole number"],
    ["min_trust: total", "minTrust must be one of none, self_signed, hardware"],
    ["insecure_lan: maybe", "insecureLan must be true or false"],
    ["prot: 1", 'unknown setting "prot"'],
    ["- a\n- b", "must hold settings as key: value"],
    ["a: [", "is not valid YAML"],
  ])("a file with %j is refused with the reason", async (yaml, message) => {
    await using dir = await tempDir();
    writeFileSync(join(dir.path, "coordinator.yaml"), yaml);
    const fault = faultOf(() => loadConfig({ dataDir: dir.path, environment: {} }));
    expect(fault.code).toBe("config_invalid");
    expect(fault.message).toContain(message);
  });

  test("a wrong environment value names the variable, not its value", () => {
    const fault = faultOf(() => loadConfig({ environment: { HOME: "/h", DARKBLOOM_PROVIDER_ROWS: "s3cret" } }));
    expect(fault.message).toContain("DARKBLOOM_PROVIDER_ROWS");
    expect(fault.message).not.toContain("s3cret");
  });

  test("values are frozen and names follow one rule", () => {
    const config = loadConfig({ environment: { HOME: "/h" } });
    expect(Object.isFrozen(config)).toBe(true);
    expect(Object.isFrozen(config.coordinator)).toBe(true);
    expect(environmentName("coordinator", "tlsCert")).toBe("DARKBLOOM_COORDINATOR_TLS_CERT");
    expect(environmentName("common", "nativeDir")).toBe("DARKBLOOM_NATIVE_DIR");
    expect(yamlName("firstContentPerTokenMs")).toBe("first_content_per_token_ms");
  });

  test("every default lies within its own bounds", () => {
    for (const section of Object.keys(SETTINGS) as Section[])
      for (const setting of Object.values(SETTINGS[section])) {
        if (setting.type === "integer" && setting.default !== null) {
          expect(setting.default).toBeGreaterThanOrEqual(setting.min);
          expect(setting.default).toBeLessThanOrEqual(setting.max);
        }
        if (setting.type === "choice") expect(setting.choices).toContain(setting.default);
      }
  });
});
