/** The rules of the tree as a test: who may import whom, who owns a package, what is banned where, how long a file may be. */
import { describe, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { Glob } from "bun";

const ROOT = path.join(import.meta.dir, "..");

const MAY_IMPORT: Record<string, readonly string[]> = {
  bin: ["cmd", "ffi"],
  cmd: [
    "src/ui",
    "src/coordinator",
    "src/provider",
    "src/engine",
    "src/models",
    "src/trust",
    "src/protocol",
    "src/dialects",
    "src/core",
    "ffi",
  ],
  "src/ui": ["src/core"],
  "src/coordinator": ["src/models", "src/trust", "src/protocol", "src/dialects", "src/core"],
  "src/provider": ["src/engine", "src/models", "src/trust", "src/protocol", "src/dialects", "src/core"],
  "src/engine": ["ffi", "src/models", "src/core"],
  "src/models": ["src/core"],
  "src/trust": ["src/core"],
  "src/protocol": ["src/core"],
  "src/dialects": ["src/core"],
  "src/core": [],
  ffi: ["src/core"],
};

/** One owner folder per outside package; a package not listed may be imported by nobody. */
const OWNER: Record<string, readonly string[]> = {
  commander: ["cmd"],
  "bun:ffi": ["ffi"],
  "bun:sqlite": ["src/coordinator/store"],
  jose: ["src/trust"],
  "@hpke/core": ["src/trust"],
  yaml: ["src/core/config.ts"],
  ws: ["src/provider/link"],
  zod: ["src", "cmd"],
  bun: ["bin", "cmd", "src", "ffi"],
};

const BANNED: readonly { readonly what: RegExp; readonly except: RegExp; readonly why: string }[] = [
  { what: /process\.env\b|Bun\.env\b/, except: /^src\/core\/config/, why: "only core/config reads the environment" },
  { what: /\bconsole\./, except: /^(cmd|src\/ui)\//, why: "results go through cmd, logs through core/log" },
  { what: /\b(TODO|FIXME|XXX)\b/, except: /^$/, why: "finish it or say so in the issue" },
  { what: /as any\b|@ts-ignore|@ts-nocheck/, except: /^$/, why: "types are not to be silenced" },
  { what: /\benum\s+\w+\s*\{|\bnamespace\s+\w+\s*\{/, except: /^$/, why: "only erasable syntax" },
  { what: /autoloadDotenv:\s*true|autoloadBunfig:\s*true/, except: /^$/, why: "a user's folder must not configure us" },
];

const layerOf = (file: string): string =>
  file
    .split("/")
    .slice(0, file.startsWith("src/") ? 2 : 1)
    .join("/");
const IMPORT =
  /(?:^|\n)\s*(?:import|export)\s(?:[^"';`=(]*?\sfrom\s)?["']([^"']+)["']|\bimport\(\s*["']([^"']+)["']\s*\)/g;

interface SourceFile {
  readonly file: string;
  readonly text: string;
}

const readSources = (pattern: string): SourceFile[] =>
  [...new Glob(pattern).scanSync(ROOT)].map((file) => ({ file, text: readFileSync(path.join(ROOT, file), "utf8") }));

const importsOf = (text: string): string[] => [...text.matchAll(IMPORT)].map((match) => match[1] ?? match[2] ?? "");

const packageOf = (name: string): string =>
  name
    .split("/")
    .slice(0, name.startsWith("@") ? 2 : 1)
    .join("/");

/** Problems of one file against the layer table; exported shape kept simple so that the planted violations below can use it. */
const importProblems = ({ file, text }: SourceFile): string[] => {
  const own = layerOf(file);
  const problems: string[] = [];
  for (const name of importsOf(text)) {
    if (name.startsWith(".")) {
      const target = path.join(path.dirname(file), name);
      if (target === "package.json") continue;
      const layer = layerOf(target);
      if (layer !== own && !(MAY_IMPORT[own] ?? []).includes(layer)) problems.push(`${file} imports ${name}`);
    } else if (!name.startsWith("node:")) {
      const owners = OWNER[packageOf(name)] ?? [];
      if (!owners.some((owner) => file.startsWith(owner))) problems.push(`${file} imports ${name}`);
    }
  }
  return problems;
};

const bannedProblems = ({ file, text }: SourceFile): string[] =>
  BANNED.filter(({ what, except }) => what.test(text) && !except.test(file)).map(({ why }) => `${file}: ${why}`);

describe("tidy", () => {
  const sources = readSources("{bin,cmd,src,ffi}/**/*.{ts,tsx}");
  const tests = readSources("test/**/*.{ts,tsx}");

  test("the scan sees the tree", () => {
    expect(sources.length).toBeGreaterThan(50);
  });

  test("imports follow the layer table and the package owners", () => {
    expect(sources.flatMap(importProblems).toSorted()).toEqual([]);
  });

  test("planted violations are found", () => {
    expect(importProblems({ file: "src/protocol/x.ts", text: `import { a } from "../trust/seal.ts";` })).toHaveLength(
      1,
    );
    expect(importProblems({ file: "src/provider/x.ts", text: `import a from "../coordinator/y.ts";` })).toHaveLength(1);
    expect(importProblems({ file: "src/core/x.ts", text: `import a from "commander";` })).toHaveLength(1);
    expect(importProblems({ file: "src/core/x.ts", text: `const a = await import("left-pad");` })).toHaveLength(1);
    expect(bannedProblems({ file: "src/engine/x.ts", text: ["process", `env["A"]`].join(".") })).toHaveLength(1);
    expect(bannedProblems({ file: "src/engine/x.ts", text: ["console", "log(1)"].join(".") })).toHaveLength(1);
  });

  test("banned constructs are absent", () => {
    expect(sources.flatMap(bannedProblems).toSorted()).toEqual([]);
  });

  test("no file is longer than 600 lines", () => {
    const long = [...sources, ...readSources("ffi/**/*.{cpp,h}")].filter(({ text }) => text.split("\n").length > 600);
    expect(long.map(({ file }) => file)).toEqual([]);
  });

  test("every file starts with a one-sentence header", () => {
    const bare = [...sources, ...tests].filter(({ text }) => !/^(#!.*\n)?(\/\*\*|\/\/ )/.test(text));
    expect(bare.map(({ file }) => file)).toEqual([]);
  });

  test("no test is switched off by hand and none sleeps and hopes", () => {
    const off = tests.filter(
      ({ file, text }) =>
        file !== "test/tidy.test.ts" && /\b(test|describe)\.(only|skip|todo)\(|Bun\.sleep\([0-9_]{3,}\)/.test(text),
    );
    expect(off.map(({ file }) => file)).toEqual([]);
  });

  test("the top level holds only what it should", () => {
    const allowed = new Set(["assets", "bin", "cmd", "ffi", "src", "test", "dist", "node_modules"]);
    const folders = readdirSync(ROOT, { withFileTypes: true }).filter((entry) => entry.isDirectory());
    const strange = folders.map((entry) => entry.name).filter((name) => !name.startsWith(".") && !allowed.has(name));
    expect(strange).toEqual([]);
  });

  test("every path that the documents name exists", () => {
    const named = ["ARCHITECTURE.md", "AGENTS.md", "README.md"].flatMap((page) =>
      [
        ...readFileSync(path.join(ROOT, page), "utf8").matchAll(
          /`((?:bin|cmd|src|ffi|test|assets|\.ci|\.github)\/[\w./-]*)`/g,
        ),
      ].map(([, name = ""]) => ({ page, name })),
    );
    expect(named.length).toBeGreaterThan(20);
    expect(named.filter(({ name }) => !existsSync(path.join(ROOT, name)))).toEqual([]);
  });

  test("the lockfile carries no download addresses", () => {
    expect(readFileSync(path.join(ROOT, "package-lock.json"), "utf8")).not.toContain('"resolved"');
  });
});
