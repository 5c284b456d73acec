/** The list of a model's files with their hashes, and the identities made from it (api-billing-store §7.2–7.4, protocol.md). */
import { createHash } from "node:crypto";
import { stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { canonicalJson } from "../core/canonical-json.ts";
import { Fault } from "../core/fault.ts";
import { MIB } from "../core/units.ts";
import { toFileFault } from "./file-fault.ts";
import { ggufHeaderSha256, readGgufHeader, templateSha256 } from "./gguf.ts";
import { aggregateSha256, comparePathDigests, hashFile, type BytesRead, type FileDigest } from "./hash.ts";
import { FILES_MAX, listIntegrityFiles, roleOf, type FileRole } from "./integrity-files.ts";
import { checkModelId, checkVersion, r2Prefix } from "./model-name.ts";

/** Field names as in the file. */
export interface ManifestFile {
  readonly path: string;
  readonly size_bytes: number;
  readonly sha256: string;
  readonly role: FileRole;
  /** On `.gguf` files: SHA-256 of the bytes before the first tensor-data byte. */
  readonly gguf_header_sha256?: string;
  /** On `.gguf` files with a chat template: SHA-256 of its text. */
  readonly template_sha256?: string;
}

export interface Manifest {
  readonly schema_version: 1;
  readonly model_id: string;
  readonly version: string;
  readonly r2_prefix: string;
  readonly aggregate_sha256: string;
  readonly total_size_bytes: number;
  readonly file_count: number;
  readonly files: readonly ManifestFile[];
}

export interface HashOptions {
  /** Bytes hashed so far and in all. */
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
  /** Replaces the plain hashing of a file, e.g. by one that remembers (`HashCache.hash`). */
  readonly hash?: (path: string, onBytes: BytesRead) => Promise<FileDigest>;
  /** Told about a `.gguf` file that is none, which is then hashed like any other; without it such a file is refused. */
  readonly onBadGguf?: (fault: Fault) => void;
}

const MANIFEST_BYTES_MAX = 1 * MIB;

const sizeOf = async (path: string): Promise<number> => {
  try {
    const { size } = await stat(path);
    return size;
  } catch (thrown) {
    throw toFileFault(thrown, "file", path);
  }
};

/** A file on disk and the name under which it is listed. */
interface NamedFile {
  readonly source: string;
  readonly path: string;
}

type GgufFields = Pick<ManifestFile, "gguf_header_sha256" | "template_sha256">;

const readGgufFields = async (source: string): Promise<GgufFields> => {
  const template = templateSha256(await readGgufHeader(source));
  const headerDigest = await ggufHeaderSha256(source);
  return { gguf_header_sha256: headerDigest, ...(template === undefined ? {} : { template_sha256: template }) };
};

const ggufFields = async (source: string, options: HashOptions): Promise<GgufFields> => {
  try {
    return await readGgufFields(source);
  } catch (thrown) {
    if (!(thrown instanceof Fault) || thrown.code !== "model_invalid" || options.onBadGguf === undefined) throw thrown;
    options.onBadGguf(thrown);
    return {};
  }
};

const hashFiles = async (files: readonly NamedFile[], options: HashOptions): Promise<ManifestFile[]> => {
  let totalBytes = 0;
  for (const { source } of files) totalBytes += await sizeOf(source);
  let doneBytes = 0;
  const onBytes = (bytes: number): void => {
    doneBytes += bytes;
    options.onProgress?.(doneBytes, totalBytes);
  };
  const hash = options.hash ?? hashFile;
  const entries: ManifestFile[] = [];
  for (const { source, path } of files) {
    // The header first: a file that is no GGUF is refused before gigabytes are read.
    const extra = path.endsWith(".gguf") ? await ggufFields(source, options) : {};
    const { sizeBytes, sha256 } = await hash(source, onBytes);
    entries.push({ path, size_bytes: sizeBytes, sha256, role: roleOf(basename(path)), ...extra });
  }
  return entries.sort(comparePathDigests);
};

/** The files of a folder that count, hashed, in byte order of their paths. Faults: `file_missing`, `io_failed`, `model_invalid`. */
export const hashFolder = async (folder: string, options: HashOptions = {}): Promise<ManifestFile[]> => {
  const paths = await listIntegrityFiles(folder);
  return hashFiles(
    paths.map((path) => ({ source: join(folder, path), path })),
    options,
  );
};

/** One file, whatever it is, listed under its own name. */
export const hashSingle = (path: string, options: HashOptions = {}): Promise<ManifestFile[]> =>
  hashFiles([{ source: path, path: basename(path) }], options);

const toManifest = (id: string, version: string, files: readonly ManifestFile[]): Manifest => ({
  schema_version: 1,
  model_id: id,
  version,
  r2_prefix: r2Prefix(id, version),
  aggregate_sha256: aggregateSha256(files),
  total_size_bytes: files.reduce((sum, file) => sum + file.size_bytes, 0),
  file_count: files.length,
  files,
});

/** A registry refuses these when the manifest arrives (api-billing-store §7.5), so they are refused where they can be mended. */
const checkPaths = (files: readonly ManifestFile[]): void => {
  const seen = new Map<string, string>();
  for (const { path } of files) {
    if (path.includes("\\"))
      throw new Fault("io_failed", `the file name ${path} has a backslash in it`, { hint: "rename it" });
    const other = seen.get(path.toLowerCase());
    if (other !== undefined)
      throw new Fault("io_failed", `${other} and ${path} differ only in upper and lower case`, {
        hint: "rename one of them",
      });
    seen.set(path.toLowerCase(), path);
  }
};

/** Hashes a model folder into a manifest. Unsafe ids and versions are a `usage` fault before any file is touched. */
export const folderManifest = async (
  model: { readonly folder: string; readonly id: string; readonly version: string },
  options: HashOptions = {},
): Promise<Manifest> => {
  const id = checkModelId(model.id);
  const version = checkVersion(model.version);
  const files = await hashFolder(model.folder, options);
  checkPaths(files);
  return toManifest(id, version, files);
};

/**
 * A model that is one GGUF file, or the parts of a split one (`GgufHeader.parts`), as a manifest. The listed name is
 * always `model.gguf` (parts: `model-00001-of-0000N.gguf`) and the version the first 12 hex digits of the file's hash
 * (parts: of the aggregate), so that two machines with the same content and id agree whatever their files are called.
 */
export const oneFileManifest = async (
  path: string | readonly string[],
  id: string,
  options: HashOptions = {},
): Promise<Manifest> => {
  const sources = typeof path === "string" ? [path] : path;
  const number = (value: number): string => String(value).padStart(5, "0");
  const named = sources.map((source, index) => ({
    source,
    path: sources.length === 1 ? "model.gguf" : `model-${number(index + 1)}-of-${number(sources.length)}.gguf`,
  }));
  const files = await hashFiles(named, options);
  const [only] = files;
  const identity = files.length === 1 && only !== undefined ? only.sha256 : aggregateSha256(files);
  return toManifest(id, identity.slice(0, 12), files);
};

/**
 * The identity of a build: SHA-256 (hex) over the canonical JSON of schema version, id, version and each file's path,
 * size, hash and role. Unlike the aggregate it binds names and sizes.
 */
export const manifestSha256 = (
  manifest: Pick<Manifest, "schema_version" | "model_id" | "version" | "files">,
): string => {
  const { schema_version, model_id, version } = manifest;
  const files = manifest.files
    .toSorted(comparePathDigests)
    .map(({ path, size_bytes, sha256, role }) => ({ path, size_bytes, sha256, role }));
  return createHash("sha256").update(canonicalJson({ schema_version, model_id, version, files })).digest("hex");
};

/** The manifest file: sorted keys, two spaces of indent (none with `indent: 0`), no final newline. Faults when it is over 1 MiB. */
export const encodeManifest = (manifest: Manifest, createdAtMs: number, indent = 2): string => {
  const created_at = new Date(createdAtMs).toISOString().replace(/\.\d+Z$/, "Z");
  const files = manifest.files.map((file) => ({ ...file }));
  // Parsing keeps the order of the keys, so canonical JSON becomes sorted and indented JSON.
  const text = JSON.stringify(JSON.parse(canonicalJson({ ...manifest, files, created_at })), null, indent);
  const sizeBytes = Buffer.byteLength(text);
  if (sizeBytes > MANIFEST_BYTES_MAX || manifest.file_count > FILES_MAX)
    throw new Fault("io_failed", `the manifest would have ${sizeBytes} bytes, more than ${MANIFEST_BYTES_MAX}`, {
      hint: "publish fewer files",
    });
  return text;
};
