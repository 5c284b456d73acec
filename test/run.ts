/** Runs the test suite in groups, each a process of its own so that a native abort cannot swallow the report; `--check` adds format, lint, types, dead code and the compiled executable. */
import path from "node:path";

interface Outcome {
  readonly name: string;
  readonly passed: number;
  readonly failed: number;
}

const ROOT = path.join(import.meta.dir, "..");
const GROUP_DEADLINE_MS = 15 * 60_000;

/** Folders under test/ per process. Whatever touches llama.cpp or whole requests runs apart. */
const GROUPS: Readonly<Record<string, readonly string[]>> = {
  unit: [
    "test/tidy.test.ts",
    "test/core/",
    "test/protocol/",
    "test/trust/",
    "test/models/",
    "test/dialects/",
    "test/engine/",
    "test/conformance/",
    "test/cmd/",
  ],
  coordinator: ["test/coordinator/"],
  provider: ["test/provider/"],
  native: ["test/ffi/"],
  flow: ["test/flow/"],
};

const CHECKS: Readonly<Record<string, readonly string[]>> = {
  format: ["oxfmt", "--check", "."],
  lint: ["oxlint", "--type-aware", "--deny-warnings"],
  types: ["tsc"],
  "dead code": ["knip"],
  executable: ["bun", "test", "--timeout", "240000", "./test/executable/"],
};

const run = async (name: string, command: readonly string[]): Promise<{ code: number; text: string }> => {
  const child = Bun.spawn([...command], {
    cwd: ROOT,
    stdout: "pipe",
    stderr: "pipe",
    env: { ...process.env, PATH: `${path.join(ROOT, "node_modules/.bin")}:${process.env["PATH"] ?? ""}` },
  });
  const timer = setTimeout(() => child.kill("SIGKILL"), GROUP_DEADLINE_MS);
  const collect = async (stream: ReadableStream<Uint8Array>): Promise<string> => {
    const decoder = new TextDecoder();
    let text = "";
    for await (const bytes of stream) {
      const piece = decoder.decode(bytes, { stream: true });
      process.stdout.write(piece);
      text += piece;
    }
    return text;
  };
  process.stdout.write(`\n== ${name}: ${command.join(" ")}\n`);
  const [out, err, code] = await Promise.all([collect(child.stdout), collect(child.stderr), child.exited]);
  clearTimeout(timer);
  return { code, text: out + err };
};

const count = (text: string, word: string): number => {
  const found = [...text.matchAll(new RegExp(`^\\s*(\\d+) ${word}`, "gm"))].at(-1);
  return Number(found?.[1] ?? 0);
};

/** A group that died without its closing lines counts as one more failure, whatever it printed before. */
const runGroup = async (name: string, paths: readonly string[]): Promise<Outcome> => {
  const { code, text } = await run(name, ["bun", "test", "--timeout", "120000", ...paths.map((item) => `./${item}`)]);
  const passed = count(text, "pass");
  const failed = count(text, "fail");
  const silent = (code !== 0 && failed === 0) || passed + failed === 0;
  return { name, passed, failed: silent ? failed + 1 : failed };
};

const runCheck = async (name: string, command: readonly string[]): Promise<Outcome> => {
  const { code } = await run(name, command);
  return { name, passed: code === 0 ? 1 : 0, failed: code === 0 ? 0 : 1 };
};

const outcomes: Outcome[] = [];
const wanted = process.argv.slice(2).filter((argument) => !argument.startsWith("--"));
if (process.argv.includes("--check"))
  for (const [name, command] of Object.entries(CHECKS)) outcomes.push(await runCheck(name, command));
else
  for (const [name, paths] of Object.entries(GROUPS))
    if (wanted.length === 0 || wanted.includes(name)) outcomes.push(await runGroup(name, paths));

for (const { name, passed, failed } of outcomes)
  process.stdout.write(`${failed === 0 ? "ok  " : "FAIL"} ${name}: ${passed} passed, ${failed} failed\n`);
const failed = outcomes.reduce((sum, outcome) => sum + outcome.failed, 0);
const passed = outcomes.reduce((sum, outcome) => sum + outcome.passed, 0);
process.stdout.write(`${passed} passed, ${failed} failed\n`);
process.exit(failed === 0 ? 0 : 1);
