/** Which model ids and versions are safe in URLs, folders and manifests, and the storage prefix made of them (api-billing-store §7.3–7.4). */
import { createHash } from "node:crypto";
import { Fault } from "../core/fault.ts";

const CHARS_MAX = 200;

const usage = (what: string, text: string, hint: string): Fault =>
  new Fault("usage", `${JSON.stringify(text.slice(0, 80))} is no safe ${what}`, { hint });

/** A path segment that a file system would read as "here". */
const hasDotSegment = (text: string): boolean => text.split("/").includes(".");

/** Throws `usage` unless the id is 1 to 200 of `A-Z a-z 0-9 . _ - /`, does not start with `/` and has no `..` in it. */
export const checkModelId = (id: string): string => {
  const safe = /^[A-Za-z0-9._/-]+$/.test(id) && !id.startsWith("/") && !id.includes("..") && !hasDotSegment(id);
  if (!safe || id.length > CHARS_MAX)
    throw usage(
      "model id",
      id,
      `use up to ${CHARS_MAX} letters, digits, . _ - and /, not starting with / and without ..`,
    );
  return id;
};

/** Like an id, without `/`. */
export const checkVersion = (version: string): string => {
  const safe = /^[A-Za-z0-9._-]+$/.test(version) && !version.includes("..") && version !== ".";
  if (!safe || version.length > CHARS_MAX)
    throw usage(
      "version",
      version,
      `use up to ${CHARS_MAX} letters, digits, . _ and -, without .., for example 2026-05-23-r1`,
    );
  return version;
};

/** A folder name for an id: everything that is not a letter, digit, `.`, `_` or `-` becomes `-`, `-` is trimmed from the ends. */
export const slugOf = (id: string): string => {
  const slug = id.replaceAll(/[^A-Za-z0-9._-]/g, "-").replaceAll(/^-+|-+$/g, "");
  return slug === "" ? "model" : slug;
};

/** Where a version's files lie under a catalog's base. The digest keeps ids with the same slug apart. */
export const r2Prefix = (id: string, version: string): string =>
  `v2/${slugOf(id)}--${createHash("sha256").update(id, "utf8").digest("hex").slice(0, 12)}/${version}`;
