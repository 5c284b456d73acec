/** How the program starts itself again. */
import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { isCompiled, selfCommand } from "../../src/core/spawn-self.ts";
import { tempDir } from "../support/temp-dir.ts";

test("from source it names this Bun, the program's entry, the verb and the arguments, in that order", () => {
  expect(isCompiled()).toBe(false);
  const command = selfCommand()("_probe", ["scores", "/dir with space"]);
  const entry = command.at(-4) ?? "";
  expect(command[0]).toBe(process.execPath);
  expect(entry.endsWith("/bin/darkbloom.ts")).toBe(true);
  expect(existsSync(entry)).toBe(true);
  expect(command.slice(-3)).toEqual(["_probe", "scores", "/dir with space"]);
});

test("a child reads no .env of the folder it stands in", async () => {
  await using dir = await tempDir();
  const entry = join(dir.path, "entry.ts");
  await Bun.write(entry, "process.stdout.write(JSON.stringify([process.argv.slice(2), process.env.PLANTED ?? null]));");
  await Bun.write(join(dir.path, ".env"), "PLANTED=yes\n");
  const run = async (command: readonly string[]): Promise<unknown> => {
    const child = Bun.spawn([...command], { cwd: dir.path, stdout: "pipe" });
    return JSON.parse(await child.stdout.text()) as unknown;
  };
  expect(await run([process.execPath, entry])).toEqual([[], "yes"]);
  expect(await run(selfCommand(entry)("verb", ["a b"]))).toEqual([["verb", "a b"], null]);
});
