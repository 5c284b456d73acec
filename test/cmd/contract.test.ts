/** The contract for scripts, command by command: exact lines on stdout, exit codes, and a last line that says what went wrong. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { runDarkbloom, type JsonLine } from "../support/darkbloom-process.ts";
import { DEMO_MODEL, serveCoordinator } from "../support/process-network.ts";
import { tempDir, type TempDir } from "../support/temp-dir.ts";

const DEADLINE_MS = 120_000;

let dir: TempDir;
beforeAll(async () => {
  dir = await tempDir();
});
afterAll(() => dir[Symbol.asyncDispose]());

/** Every stdout line must be an object; returns them. */
const jsonLines = (stdout: string): JsonLine[] => {
  if (stdout === "") return [];
  expect(stdout.endsWith("\n")).toBe(true);
  return stdout
    .slice(0, -1)
    .split("\n")
    .map((line) => {
      const value: unknown = JSON.parse(line);
      expect(value).toBeObject();
      return value as JsonLine;
    });
};

/** Runs a command that must fail; checks the shape of its one line and returns it. */
const failure = async (
  args: readonly string[],
): Promise<{ readonly code: number; readonly fault: string; readonly message: string; readonly stderr: string }> => {
  const ended = await runDarkbloom([...args, "--json"]);
  const lines = jsonLines(ended.stdout);
  const last = lines.at(-1);
  expect(Object.keys(last ?? {})).toEqual(["event", "code", "message", "hint"]);
  expect(last?.["event"]).toBe("error");
  expect(last?.["message"]).toBeString();
  expect(last?.["hint"] === null || typeof last?.["hint"] === "string").toBe(true);
  expect(lines.filter((line) => line["event"] === "error")).toHaveLength(1);
  expect(`${ended.stdout}${ended.stderr}`).not.toMatch(/^\s+at /m);
  return { code: ended.code, fault: String(last?.["code"]), message: String(last?.["message"]), stderr: ended.stderr };
};

/** Data folder of commands that must not get as far as using it. */
const state = (): string => join(dir.path, "state");

/** A start whose join token is the next argument. */
const startAt = (url: string): readonly string[] => [
  "start",
  "--model",
  DEMO_MODEL,
  "--data-dir",
  state(),
  "--coordinator-url",
  url,
  "--join",
];

describe("wrong flags, ids and versions end with 64", () => {
  const WRONG: Readonly<Record<string, () => readonly string[]>> = {
    "unknown command": () => ["serve"],
    "unknown global flag": () => ["--quiet"],
    "unknown flag": () => ["keys", "create", "--bogus"],
    "too many arguments": () => ["keys", "create", "extra"],
    "missing subcommand": () => ["keys"],
    "missing argument": () => ["keys", "revoke"],
    "key id of the wrong shape": () => ["keys", "revoke", "sk-db-1", "--data-dir", state()],
    "join token id of the wrong shape": () => ["join-token", "revoke", "key_1", "--data-dir", state()],
    "date that is none": () => ["join-token", "create", "--expires", "soon", "--data-dir", state()],
    "date that is over": () => ["join-token", "create", "--expires", "2020-01-01", "--data-dir", state()],
    "unsafe model in a token": () => ["join-token", "create", "--models", "../x", "--data-dir", state()],
    "port beyond 65535": () => ["serve-coordinator", "--port", "65536", "--data-dir", state()],
    "port that is no number": () => ["start", "--local", "--port", "http", "--model", DEMO_MODEL],
    "trust level that does not exist": () => ["serve-coordinator", "--min-trust", "much", "--data-dir", state()],
    "neither a coordinator nor --local": () => ["start", "--model", DEMO_MODEL, "--data-dir", state()],
    "--local with a coordinator": () => ["start", "--local", "--join", "jt-db-1", "--model", DEMO_MODEL],
    "no model": () => ["start", "--local", "--data-dir", state()],
    "unsafe model id": () => ["start", "--local", "--model", DEMO_MODEL, "--id", "../x", "--data-dir", state()],
    "context that is no number": () => ["start", "--local", "--model", DEMO_MODEL, "--ctx", "many"],
    "coordinator URL of an unknown scheme": () => [...startAt("ftp://127.0.0.1"), `jt-db-${"0".repeat(64)}`],
    "join token that is none": () => [...startAt("ws://127.0.0.1:9"), "hello"],
    "unsafe id to publish": () => ["publish", "hash", dir.path, "--id", "a/../b", "--version", "1"],
    "unsafe version to publish": () => ["publish", "hash", dir.path, "--id", "a", "--version", "../1"],
    "demo on a port that is none": () => ["demo", "--once", "--port", "-1"],
  };

  for (const [name, args] of Object.entries(WRONG))
    test(
      name,
      async () => {
        expect(await failure(args())).toMatchObject({ code: 64, fault: "usage" });
      },
      DEADLINE_MS,
    );

  test("without --json the error is on stderr, with what to type, and stdout stays empty", async () => {
    const { code, stdout, stderr } = await runDarkbloom(["serv"]);
    expect({ code, stdout, stderr }).toEqual({
      code: 64,
      stdout: "",
      stderr: 'error: there is no command "serv"\n  → did you mean: darkbloom serve-coordinator\n',
    });
  });
});

describe("any other failure ends with 1", () => {
  test(
    "a key, a file or a folder that is not there",
    async () => {
      const missing = join(dir.path, "missing.gguf");
      const unknown = ["--data-dir", join(dir.path, "empty")];
      expect(await failure(["keys", "revoke", `key_${"0".repeat(24)}`, ...unknown])).toMatchObject({ code: 1 });
      expect(await failure(["join-token", "revoke", `jt_${"0".repeat(24)}`, ...unknown])).toMatchObject({ code: 1 });
      expect(await failure(["hash", missing])).toMatchObject({ code: 1, fault: "file_missing" });
      expect(await failure(["benchmark", "--model", missing])).toMatchObject({ code: 1, fault: "file_missing" });
      expect(await failure(["start", "--local", "--model", missing, ...unknown])).toMatchObject({
        code: 1,
        fault: "file_missing",
      });
    },
    DEADLINE_MS,
  );

  test(
    "the coordinator's port in use",
    async () => {
      await using coordinator = await serveCoordinator({ dataDir: join(dir.path, "in-use") });
      const args = ["serve-coordinator", "--port", String(coordinator.port), "--data-dir", join(dir.path, "second")];
      const found = await failure(args);
      expect(found).toMatchObject({ code: 1, fault: "address_in_use" });
      expect(found.message).toContain(String(coordinator.port));
    },
    DEADLINE_MS,
  );

  test(
    "settings that do not make sense name their file",
    async () => {
      const dataDir = join(dir.path, "bad-settings");
      expect((await runDarkbloom(["keys", "list", "--data-dir", dataDir])).code).toBe(0);
      await writeFile(join(dataDir, "coordinator.yaml"), "prot: 1\n");
      const found = await failure(["keys", "list", "--data-dir", dataDir]);
      expect(found).toMatchObject({ code: 1, fault: "config_invalid" });
      expect(found.message).toContain("coordinator.yaml");
    },
    DEADLINE_MS,
  );
});

describe("results", () => {
  /** A command that must succeed, its lines. */
  const success = async (args: readonly string[]): Promise<JsonLine[]> => {
    const { code, stdout, stderr } = await runDarkbloom([...args, "--json"]);
    expect({ args, code, stderr: code === 0 ? "" : stderr }).toEqual({ args, code: 0, stderr: "" });
    return jsonLines(stdout);
  };

  test("demo --once: exactly one line", async () => {
    const lines = await success(["demo", "--once"]);
    const keys = "answer prompt_tokens completion_tokens ttft_ms decode_tps provider_id trust_level sealed";
    expect(lines.map((line) => Object.keys(line).join(" "))).toEqual([keys]);
    const [line] = lines;
    expect(line).toMatchObject({ sealed: true, trust_level: "self_signed" });
    expect(line?.["answer"]).toStartWith("There once was a");
    expect(line?.["provider_id"]).toMatch(/^prov_[0-9a-f]{24}$/);
    for (const key of ["prompt_tokens", "completion_tokens", "ttft_ms", "decode_tps"])
      expect(line?.[key]).toBeGreaterThan(0);
  }, 600_000);

  test(
    "hash and publish hash",
    async () => {
      const [hashed] = await success(["hash", DEMO_MODEL]);
      expect(Object.keys(hashed ?? {})).toEqual(["aggregate_sha256", "files"]);
      const [manifest] = await success(["publish", "hash", dirname(DEMO_MODEL), "--id", "demo", "--version", "1"]);
      expect(manifest).toMatchObject({ aggregate_sha256: hashed?.["aggregate_sha256"], model_id: "demo" });
    },
    DEADLINE_MS,
  );

  test(
    "doctor and benchmark",
    async () => {
      const folder = ["--data-dir", join(dir.path, "doctor")];
      const [report] = await success(["doctor", ...folder, "--model", DEMO_MODEL]);
      expect(Object.keys(report ?? {})).toEqual(["version", "generated_at", "daemon", "checks", "summary"]);
      const checks = report?.["checks"] as Record<string, unknown>[];
      for (const check of checks) expect(check).toContainKeys(["id", "section", "status", "detail", "fix"]);
      expect(report?.["summary"]).toMatchObject({ fail: 0 });
      const short = ["--iterations", "1", "--prompt-tokens", "16", "--max-tokens", "4", "--batch", "1"];
      const [figures] = await success(["benchmark", "--model", DEMO_MODEL, ...short]);
      expect(figures).toContainKeys(["model", "prefill", "decode"]);
      expect(figures?.["prefill"]).toHaveLength(1);
    },
    DEADLINE_MS,
  );

  test(
    "keys and join tokens before any coordinator ran",
    async () => {
      const folder = ["--data-dir", join(dir.path, "before")];
      const [key] = await success(["keys", "create", "--name", "laptop", ...folder]);
      expect(Object.keys(key ?? {})).toEqual(["key", "id"]);
      expect(key?.["key"]).toMatch(/^sk-db-[0-9a-f]{64}$/);
      expect(key?.["id"]).toMatch(/^key_[0-9a-f]{24}$/);
      const [token] = await success(["join-token", "create", ...folder]);
      expect(Object.keys(token ?? {})).toEqual(["token", "id", "expires_at"]);
      expect(token?.["token"]).toMatch(/^jt-db-[0-9a-f]{64}/);
      expect(token?.["id"]).toMatch(/^jt_[0-9a-f]{24}$/);
      expect(token?.["expires_at"]).toBeNull();
      const [dated] = await success(["join-token", "create", "--models", "a,b", "--expires", "2999-01-31", ...folder]);
      expect(dated?.["expires_at"]).toBe("2999-01-31T00:00:00.000Z");

      const [listedKey] = await success(["keys", "list", ...folder]);
      expect(Object.keys(listedKey ?? {})).toEqual(["id", "name", "label", "disabled", "created_at"]);
      expect(listedKey).toMatchObject({ id: key?.["id"], name: "laptop", disabled: false });
      const listed = await success(["join-token", "list", ...folder]);
      expect(listed.map((line) => [line["id"], line["models"]])).toEqual([
        [dated?.["id"], ["a", "b"]],
        [token?.["id"], null],
      ]);

      expect(await success(["keys", "revoke", String(key?.["id"]), ...folder])).toEqual([
        { id: key?.["id"], revoked: true },
      ]);
      await success(["join-token", "revoke", String(token?.["id"]), ...folder]);
      expect(await success(["keys", "list", ...folder])).toMatchObject([{ disabled: true }]);
      const secrets = [key, token, dated].map((line) => String(line?.["key"] ?? line?.["token"]).slice(6, 70));
      const shown = JSON.stringify([await success(["keys", "list", ...folder]), listed]);
      for (const secret of secrets) expect(shown).not.toContain(secret);
    },
    DEADLINE_MS,
  );

  test(
    "--version and --help are for people and quick",
    async () => {
      const version = await runDarkbloom(["--version"]);
      expect(version).toMatchObject({ code: 0, stderr: "" });
      expect(version.stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
      const help = await runDarkbloom(["--help"]);
      expect(help).toMatchObject({ code: 0, stderr: "" });
      for (const verb of ["demo", "start", "serve-coordinator", "keys", "join-token", "doctor", "benchmark", "hash"])
        expect(help.stdout).toContain(`  ${verb}`);
      const verbHelp = await runDarkbloom(["start", "--help"]);
      expect(verbHelp).toMatchObject({ code: 0, stderr: "" });
      expect(verbHelp.stdout).toContain("--coordinator-url");
    },
    DEADLINE_MS,
  );
});
