/** What can be wrong with a machine, its files and its flags: each is one clear error with what to type, never a crash or a stack. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmod, copyFile, mkdir, readFile, symlink, writeFile } from "node:fs/promises";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { streamChat } from "../support/chat-stream.ts";
import { runDarkbloom, startDarkbloom } from "../support/darkbloom-process.ts";
import { cacheWithHeaders } from "../support/native.ts";
import {
  capitalQuestion,
  createJoinToken,
  DEMO_MODEL,
  MODEL_ID,
  serveCoordinator,
  startProviderProcess,
  warmUpNative,
} from "../support/process-network.ts";
import { tempDir, type TempDir } from "../support/temp-dir.ts";
import { waitFor } from "../support/wait.ts";

const DEADLINE_MS = 110_000;

let dir: TempDir;
beforeAll(async () => {
  await warmUpNative();
  dir = await tempDir();
}, 600_000);
afterAll(() => dir[Symbol.asyncDispose]());

interface Expected {
  readonly code: string;
  readonly message: RegExp;
  readonly hint: RegExp;
}

interface Run {
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

/** Runs it twice, for scripts and for people: exit code 1, one error that says what to do, no stack, no signal. */
const expectFault = async ({ args, env = {} }: Run, expected: Expected): Promise<void> => {
  const ended = await runDarkbloom([...args, "--json"], { env });
  const errors = ended.lines.filter((line) => line["event"] === "error");
  expect({ code: ended.code, errors, stderr: ended.code === 1 ? "" : ended.stderr }).toEqual({
    code: 1,
    errors: [
      {
        event: "error",
        code: expected.code,
        message: expect.stringMatching(expected.message),
        hint: expect.stringMatching(expected.hint),
      },
    ],
    stderr: "",
  });
  expect(ended.lines.at(-1)).toBe(errors[0]);
  expect(ended.stderr).not.toMatch(/^\s+at |error:/m);

  const told = await runDarkbloom(args, { env });
  expect(told.code).toBe(1);
  expect(told.stdout).toBe("");
  expect(told.stderr.match(/^error: /gm)).toHaveLength(1);
  expect(told.stderr).toMatch(expected.message);
  expect(told.stderr).toMatch(/^ {2}→ /m);
  expect(told.stderr).not.toMatch(/^\s+at |"stack"|internal error/m);
};

const localStart = (folder: string, model = DEMO_MODEL): readonly string[] => {
  const dataDir = join(dir.path, folder);
  return ["start", "--local", "--port", "0", "--model", model, "--data-dir", dataDir];
};
const serve = (folder: string, ...args: readonly string[]): readonly string[] => {
  const dataDir = join(dir.path, folder);
  return ["serve-coordinator", "--port", "0", "--data-dir", dataDir, ...args];
};
/** A folder of the test's own with one file in it. */
const folderWith = async (folder: string, file: string, content: string | Uint8Array): Promise<string> => {
  await mkdir(join(dir.path, folder), { recursive: true, mode: 0o700 });
  await writeFile(join(dir.path, folder, file), content, { mode: 0o600 });
  return join(dir.path, folder, file);
};

describe("the native library", () => {
  test(
    "is not in the folder it should be in",
    async () => {
      await mkdir(join(dir.path, "no-libraries"));
      const env = { DARKBLOOM_NATIVE_DIR: join(dir.path, "no-libraries") };
      const expected = { code: "native_missing", message: /no-libraries\) lacks one of llama\.cpp/, hint: /npm ci/ };
      await expectFault({ args: localStart("native"), env }, expected);
      const nowhere = { DARKBLOOM_NATIVE_DIR: join(dir.path, "nowhere") };
      await expectFault(
        { args: ["benchmark", "--model", DEMO_MODEL], env: nowhere },
        { code: "native_missing", message: /nowhere/, hint: /check the path/ },
      );
    },
    DEADLINE_MS,
  );

  test(
    "cannot be built without a compiler",
    async () => {
      const bin = join(dir.path, "bin");
      await mkdir(bin);
      for (const tool of ["sh", "env", "git", "tar", "uname"]) await symlink(Bun.which(tool) ?? "", join(bin, tool));
      await cacheWithHeaders(join(dir.path, "cache/darkbloom"));
      const env = { PATH: bin, XDG_CACHE_HOME: join(dir.path, "cache") };
      const expected = { code: "compiler_missing", message: /no C\+\+ compiler/, hint: /install|xcode-select/ };
      await expectFault({ args: localStart("compiler"), env }, expected);
    },
    DEADLINE_MS,
  );
});

describe("the model file", () => {
  const BROKEN: Readonly<Record<string, { message: RegExp; make: (whole: Buffer) => Uint8Array }>> = {
    empty: { message: /does not start with the letters GGUF/, make: () => new Uint8Array() },
    text: { message: /does not start with the letters GGUF/, make: () => Buffer.from("Once upon a time\n") },
    "cut in its header": { message: /cut short|ends|end of the file/, make: (whole) => whole.subarray(0, 4_000) },
    "cut in its tensors": { message: /cut short/, make: (whole) => whole.subarray(0, whole.length - 1) },
    "with a count beyond all bounds": {
      message: /over the limit/,
      make: (whole) => Buffer.from(whole).fill(0xff, 16, 24),
    },
    "of a version to come": { message: /version/, make: (whole) => Buffer.from(whole).fill(0x7f, 4, 5) },
  };
  for (const [name, { message, make }] of Object.entries(BROKEN))
    test(
      name,
      async () => {
        const path = await folderWith("models", `${name.replaceAll(" ", "-")}.gguf`, make(await readFile(DEMO_MODEL)));
        await expectFault(
          { args: localStart("broken-model", path) },
          { code: "model_invalid", message, hint: /download the file again/ },
        );
      },
      DEADLINE_MS,
    );

  test(
    "is a folder",
    async () => {
      const args = localStart("broken-model", dir.path);
      await expectFault({ args }, { code: "io_failed", message: /is a folder/, hint: /name the file/ });
    },
    DEADLINE_MS,
  );
});

describe("the data folder", () => {
  test(
    "cannot be made or used",
    async () => {
      const file = await folderWith("taken", "file", "");
      const expected = { code: "io_failed", message: /data folder/, hint: /--data-dir/ };
      await expectFault({ args: localStart("taken/file/state") }, expected);
      await expectFault({ args: serve("taken/file") }, expected);
      await expectFault({ args: ["keys", "list", "--data-dir", file] }, expected);
    },
    DEADLINE_MS,
  );

  test(
    "holds a damaged database",
    async () => {
      await folderWith("database", "coordinator.db", crypto.getRandomValues(new Uint8Array(16_384)));
      const expected = { code: "store_failed", message: /database file is damaged/, hint: /coordinator\.db/ };
      await expectFault({ args: serve("database") }, expected);
      await expectFault({ args: ["keys", "create", "--data-dir", join(dir.path, "database")] }, expected);
    },
    DEADLINE_MS,
  );

  test(
    "holds an identity that is none, or that others can read",
    async () => {
      const expected = { code: "config_invalid", message: /holds no P-256 private key/, hint: /mv .*\.key/ };
      const key = await folderWith("identity", "identity.key", "-----BEGIN PRIVATE KEY-----\nnonsense\n");
      await expectFault({ args: localStart("identity") }, expected);
      await copyFile(key, join(dir.path, "identity", "coordinator.key"));
      await expectFault({ args: serve("identity") }, expected);
      await chmod(key, 0o644);
      const open = { code: "config_invalid", message: /can be read by other users/, hint: /chmod 600/ };
      await expectFault({ args: localStart("identity") }, open);
    },
    DEADLINE_MS,
  );

  test(
    "belongs to a provider or a coordinator that runs, and which goes on running",
    async () => {
      await using local = startDarkbloom([...localStart("shared"), "--json", "--id", MODEL_ID]);
      const listening = await local.event("listening");
      const message = /already runs in .*shared \(process \d+\)/;
      await expectFault({ args: localStart("shared") }, { code: "already_running", message, hint: /--data-dir/ });
      const request = { baseUrl: String(listening["url"]), key: String(listening["api_key"]) };
      expect(await streamChat({ ...request, body: capitalQuestion() })).toMatchObject({ status: 200, done: true });
      expect(readdirSync(join(dir.path, "shared"))).toContain("provider.pid");

      await using coordinator = await serveCoordinator({ dataDir: join(dir.path, "shared-c") });
      const runs = { code: "already_running", message: /coordinator runs on this data folder/, hint: /--data-dir/ };
      await expectFault({ args: serve("shared-c") }, runs);
      expect((await fetch(`${coordinator.url}/readyz`)).status).toBe(200);
      expect(readdirSync(join(dir.path, "shared-c"))).toContain("admin.sock");
    },
    DEADLINE_MS,
  );
});

describe("the coordinator's address", () => {
  test(
    "would send prompts in the clear, or does not exist",
    async () => {
      const clear = {
        code: "config_invalid",
        message: /without TLS/,
        hint: /--tls-cert and --tls-key.*--insecure-lan/,
      };
      await expectFault({ args: serve("bind", "--host", "0.0.0.0") }, clear);
      await expectFault({ args: serve("bind", "--host", "::") }, clear);
      const strange = { code: "config_invalid", message: /cannot listen on 192\.0\.2\.1/, hint: /--host/ };
      await expectFault({ args: serve("bind", "--host", "192.0.2.1", "--insecure-lan") }, strange);
    },
    DEADLINE_MS,
  );

  test(
    "has TLS files that do not work",
    async () => {
      const pem = await folderWith("tls", "cert.pem", "-----BEGIN CERTIFICATE-----\nnonsense\n");
      const half = { code: "config_invalid", message: /go together/, hint: /--tls-cert and --tls-key/ };
      await expectFault({ args: serve("tls", "--tls-cert", pem) }, half);
      await expectFault({ args: serve("tls", "--tls-key", pem) }, half);
      const unusable = { code: "config_invalid", message: /cannot be used/, hint: /PEM/ };
      await expectFault({ args: serve("tls", "--tls-cert", pem, "--tls-key", pem) }, unusable);
      const missing = { code: "file_missing", message: /missing\.pem/, hint: /--tls-key/ };
      const gone = join(dir.path, "missing.pem");
      await expectFault({ args: serve("tls", "--tls-cert", pem, "--tls-key", gone) }, missing);
    },
    DEADLINE_MS,
  );
});

describe("what a provider keeps trying, it tells once and clearly", () => {
  interface Told {
    /** How many failed attempts to wait for. */
    readonly tries: number;
    readonly token: string;
    readonly coordinatorUrl: string;
    readonly fault: string;
    readonly message: RegExp;
    readonly hint: RegExp;
  }
  /** It must neither end nor crash, say what is wrong in log, terminal and state file, and end clean. */
  const expectTold = async (folder: string, { tries, token, coordinatorUrl, ...expected }: Told): Promise<void> => {
    const dataDir = join(dir.path, folder);
    // The link's single steps, by which the attempts are counted, are logged at debug.
    const env = { DARKBLOOM_LOG_LEVEL: "debug" };
    await using provider = startProviderProcess({ dataDir, coordinatorUrl, token, env });
    const attempts = (): number => provider.stderr().split('"to":"backoff"').length - 1;
    await waitFor(`${tries} attempts`, () => attempts() >= tries, 30_000);
    const logged = provider
      .stderr()
      .split("\n")
      .filter((line) => line.includes("provider_fault"));
    expect(logged).toHaveLength(1);
    const { fault, message, hint } = JSON.parse(logged[0] ?? "{}") as Record<string, string>;
    expect(fault).toBe(expected.fault);
    expect(message).toMatch(expected.message);
    expect(hint).toMatch(expected.hint);
    const state = (await Bun.file(join(dataDir, "state.json")).json()) as { last_error: unknown };
    expect(state.last_error).toMatchObject({ code: fault, message, hint });
    provider.kill("SIGINT");
    expect(await provider.exited).toBe(0);
    expect(provider.lines.map((line) => line["event"])).toEqual(["phase", "phase", "phase", "stopped"]);
    expect(provider.stderr()).not.toMatch(/^\s+at /m);
  };

  test(
    "a join token that the coordinator does not know, and a coordinator that is not there",
    async () => {
      await using coordinator = await serveCoordinator({ dataDir: join(dir.path, "told-c") });
      const { token } = await createJoinToken(coordinator.dataDir);
      // A refused token is tried again after half a minute at the earliest.
      await expectTold("told-token", {
        tries: 1,
        token: `jt-db-${"0".repeat(64)}`,
        coordinatorUrl: coordinator.url,
        fault: "provider_rejected",
        message: /refused the join token/,
        hint: /join-token create/,
      });
      await expectTold("told-path", {
        tries: 1,
        token,
        coordinatorUrl: `${coordinator.url}/elsewhere`,
        fault: "provider_rejected",
        message: /no provider endpoint \(HTTP 404\)/,
        hint: /--coordinator-url/,
      });
      const { url } = coordinator;
      await coordinator[Symbol.asyncDispose]();
      await expectTold("told-url", {
        tries: 3,
        token,
        coordinatorUrl: url,
        fault: "coordinator_unreachable",
        message: /cannot reach the coordinator/,
        hint: /--coordinator-url/,
      });
    },
    DEADLINE_MS,
  );
});
