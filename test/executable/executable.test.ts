/** The compiled executable, copied to an empty folder with an empty home: every verb, without source, npm or compiler. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { copyFile, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { runDarkbloom, startDarkbloom } from "../support/darkbloom-process.ts";
import { streamChat } from "../support/chat-stream.ts";

const ROOT = path.join(import.meta.dir, "../..");
const MODEL = path.join(ROOT, "assets/demo-model/darkbloom-demo-q8_0.gguf");

let folder = "";
let program: readonly string[] = [];

const options = () => ({
  program,
  cwd: folder,
  // A PATH without compiler, npm and bun: what it needs, it must carry.
  env: {
    HOME: folder,
    XDG_CACHE_HOME: path.join(folder, "cache"),
    PATH: "/usr/bin:/bin",
    CXX: "/nonexistent",
    DARKBLOOM_HOME: path.join(folder, "state"),
  },
});

const build = async (...args: string[]): Promise<string> => {
  const child = Bun.spawn([process.execPath, path.join(ROOT, "bin/build.ts"), ...args], {
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  if (code !== 0) throw new Error(`build failed:\n${err}`);
  return out.trim();
};

beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "darkbloom-executable-"));
  await build("--outfile", path.join(folder, "built"));
  await mkdir(path.join(folder, "bin"));
  const target = path.join(folder, "bin/darkbloom");
  await copyFile(path.join(folder, "built"), target);
  await rm(path.join(folder, "built"));
  program = [target];
  await copyFile(MODEL, path.join(folder, "tiny.gguf"));
  // Neither may configure a program that holds keys.
  await writeFile(path.join(folder, ".env"), "DARKBLOOM_LOG_LEVEL=planted\n");
  await writeFile(path.join(folder, "bunfig.toml"), 'preload = ["./planted.ts"]\n');
}, 300_000);

afterAll(() => rm(folder, { recursive: true, force: true }));

describe("executable", () => {
  test("--version and --help", async () => {
    const version = await runDarkbloom(["--version"], options());
    expect(version).toMatchObject({ code: 0, stderr: "" });
    expect(version.stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
    const help = await runDarkbloom(["--help"], options());
    expect(help.stdout).toContain("serve-coordinator");
    expect((await runDarkbloom(["nonsense"], options())).code).toBe(64);
  });

  test("demo --once answers through the sealed road", async () => {
    const { code, lines, stderr } = await runDarkbloom(["demo", "--once", "--json"], options());
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(lines).toHaveLength(1);
    expect(lines[0]).toMatchObject({ sealed: true, trust_level: "self_signed" });
  });

  test("doctor, benchmark, hash, publish hash", async () => {
    const doctor = await runDarkbloom(["doctor", "--json", "--model", "tiny.gguf"], options());
    expect(doctor.lines[0]).toMatchObject({ summary: { fail: 0 } });
    expect(doctor.code).toBe(0);
    const args = [
      "--model",
      "tiny.gguf",
      "--iterations",
      "1",
      "--batch",
      "1,2",
      "--prompt-tokens",
      "64",
      "--max-tokens",
      "8",
    ];
    const benchmark = await runDarkbloom(["benchmark", "--json", ...args], options());
    expect(benchmark.code).toBe(0);
    expect(benchmark.lines[0]?.["decode"]).toHaveLength(2);
    const hash = await runDarkbloom(["hash", "tiny.gguf", "--json"], options());
    expect(hash.lines[0]?.["aggregate_sha256"]).toMatch(/^[0-9a-f]{64}$/);
    await mkdir(path.join(folder, "release"), { recursive: true });
    await copyFile(MODEL, path.join(folder, "release/tiny.gguf"));
    const publish = await runDarkbloom(
      ["publish", "hash", "release", "--id", "a/b", "--version", "1", "--json"],
      options(),
    );
    expect(publish.lines[0]).toMatchObject({ model_id: "a/b", file_count: 1 });
    expect((await runDarkbloom(["publish", "hash", "release", "--id", "../x", "--version", "1"], options())).code).toBe(
      64,
    );
  });

  test("coordinator, key, join token and provider serve a chat", async () => {
    const key = (await runDarkbloom(["keys", "create", "--name", "t", "--json"], options())).lines[0]?.["key"];
    const token = (await runDarkbloom(["join-token", "create", "--json"], options())).lines[0]?.["token"];
    await using coordinator = startDarkbloom(["serve-coordinator", "--port", "0", "--json"], options());
    const listening = await coordinator.event("listening");
    const target = ["--coordinator-url", String(listening["provider_url"]), "--join", String(token)];
    await using provider = startDarkbloom(
      ["start", ...target, "--model", "tiny.gguf", "--data-dir", path.join(folder, "provider"), "--json"],
      options(),
    );
    expect(await provider.event("serving")).toMatchObject({ models: ["tiny"], trust_level: "self_signed" });
    const answer = await streamChat({
      baseUrl: String(listening["url"]),
      key: String(key),
      body: { model: "tiny", messages: [{ role: "user", content: "What is 7 + 5?" }], temperature: 0 },
    });
    expect(answer).toMatchObject({ status: 200, done: true, text: "7 + 5 = 12" });
    provider.kill("SIGINT");
    coordinator.kill("SIGTERM");
    expect(await Promise.all([provider.exited, coordinator.exited])).toEqual([0, 0]);
    expect([provider.lines.at(-1), coordinator.lines.at(-1)]).toEqual([{ event: "stopped" }, { event: "stopped" }]);
  });

  test("start --local serves", async () => {
    const args = [
      "start",
      "--local",
      "--port",
      "0",
      "--model",
      "tiny.gguf",
      "--data-dir",
      path.join(folder, "local"),
      "--json",
    ];
    await using local = startDarkbloom(args, options());
    const { url, api_key: key } = await local.event("listening");
    await local.event("serving");
    const body = { model: "tiny", messages: [{ role: "user", content: "What is 7 + 5?" }], temperature: 0 };
    expect(await streamChat({ baseUrl: String(url), key: String(key), body })).toMatchObject({ text: "7 + 5 = 12" });
  });

  test("the TypeScript cross-compiles for Apple silicon", async () => {
    const outfile = path.join(folder, "darkbloom-mac");
    expect(await build("--target", "darwin-arm64", "--outfile", outfile)).toBe(outfile);
    const magic = await Bun.file(outfile).slice(0, 8).bytes();
    // Mach-O, 64 bit, little endian; CPU type arm64.
    expect(magic.toHex()).toBe("cffaedfe0c000001");
  });
});
