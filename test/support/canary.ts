/** Looks for texts that must be nowhere: in files, their names and program output, plain and in the encodings programs like. */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";

export interface Place {
  readonly name: string;
  readonly content: Buffer;
}

export interface Leak {
  readonly place: string;
  /** How the text was written there. */
  readonly form: string;
}

interface Needle {
  readonly form: string;
  readonly text: string;
  readonly anyCase: boolean;
}

/** The part of a Base64 text that depends on these bytes alone, when `skip` other bytes stand before them. */
const base64At = (text: string, skip: number): string => {
  const bytes = Buffer.concat([Buffer.alloc(skip), Buffer.from(text)]);
  const from = Math.ceil((skip * 8) / 6);
  return bytes.toString("base64").slice(from, Math.floor((bytes.length * 8) / 6));
};

const eachChar = (text: string, toCode: (code: string) => string): string =>
  Array.from(text, (char) => toCode((char.codePointAt(0) ?? 0).toString(16))).join("");

/** Every form in which the text is looked for; the texts are ASCII letters, digits and dashes. */
const needlesOf = (text: string): readonly Needle[] => [
  { form: "plain", text, anyCase: true },
  { form: "utf-16", text: Array.from(text).join("\0"), anyCase: true },
  { form: "hex", text: Buffer.from(text).toString("hex"), anyCase: true },
  { form: "JSON escapes", text: eachChar(text, (code) => `\\u${code.padStart(4, "0")}`), anyCase: true },
  { form: "percent encoding", text: eachChar(text, (code) => `%${code}`), anyCase: true },
  ...[0, 1, 2].flatMap((skip) => {
    const encoded = base64At(text, skip);
    const url = encoded.replaceAll("+", "-").replaceAll("/", "_");
    return [...new Set([encoded, url])].map((form) => ({ form: `base64, ${skip} before`, text: form, anyCase: false }));
  }),
];

/** One way to write each form, for planting. */
export const writtenForms = (text: string): Readonly<Record<string, string | Buffer>> => ({
  plain: `x ${text} y`,
  "utf-16": Buffer.from(`x ${text} y`, "utf16le"),
  hex: Buffer.from(`x ${text} y`).toString("hex"),
  "JSON escapes": `"${eachChar(text, (code) => `\\u${code.padStart(4, "0")}`)}"`,
  "percent encoding": eachChar(text, (code) => `%${code.toUpperCase()}`),
  "base64, 0 before": Buffer.from(`${text} y`).toString("base64"),
  "base64, 1 before": Buffer.from(`x${text} y`).toString("base64url"),
  "base64, 2 before": Buffer.from(`x ${text} y`).toString("base64"),
});

/** Where any of the texts is found. A name counts as content. */
export const findLeaks = (places: readonly Place[], texts: readonly string[]): readonly Leak[] => {
  const needles = texts.flatMap(needlesOf);
  return places.flatMap(({ name, content }) => {
    const exact = `${name}\n${content.toString("latin1")}`;
    const lower = exact.toLowerCase();
    return needles
      .filter(({ text, anyCase }) => (anyCase ? lower.includes(text.toLowerCase()) : exact.includes(text)))
      .map(({ form }) => ({ place: name, form }));
  });
};

/** Every file below a folder that was written or changed since; sockets and what vanishes meanwhile are left out. */
export const filesBelow = (folder: string, sinceMs = 0): readonly Place[] =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .flatMap((path) => {
      try {
        const { ctimeMs } = statSync(path);
        return ctimeMs < sinceMs ? [] : [{ name: path, content: readFileSync(path) }];
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
        throw error;
      }
    });
