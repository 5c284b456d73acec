/** Signing keys: the interface that hides where a key lives, and the software key in a file that every system has. */
import { CompactSign, importPKCS8 } from "jose";
import { createPrivateKey, createPublicKey, generateKeyPairSync, randomBytes, type KeyObject } from "node:crypto";
import {
  closeSync,
  existsSync,
  fstatSync,
  fsyncSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  writeSync,
} from "node:fs";
import { dirname } from "node:path";
import { Fault, toFault } from "../core/fault.ts";
import { encodeIdentityKey, fingerprintOf, SIGNATURE_ALGORITHM, type SignedType } from "./jws.ts";

export interface Signer {
  readonly algorithm: typeof SIGNATURE_ALGORITHM;
  /** `identity_key`: base64url of the 65-byte uncompressed P-256 point. */
  readonly publicKey: string;
  /** First 32 hex digits of the SHA-256 of those bytes, for join tokens and people. */
  readonly fingerprint: string;
  /** Compact JWS over exactly these payload bytes, with `typ` as its domain. */
  signJws(type: SignedType, payloadJson: string): Promise<string>;
}

const FILE_BYTES_MAX = 4096;
const FILE_MODE = 0o600;
const FOLDER_MODE = 0o700;
const OTHERS = 0o077;

/**
 * Opens the P-256 key of an `identity.key` file (PKCS8 PEM, mode 0600) and creates it first where there is none.
 * Throws `config_invalid` for a file that others can read or that holds no such key, `io_failed` when it cannot be
 * read or written.
 */
export const openSoftwareSigner = async (path: string): Promise<Signer> => {
  const pem = readKeyFile(path) ?? createKeyFile(path);
  const privateKey = parseKey(path, pem);
  const publicKey = encodeIdentityKey(createPublicKey(privateKey).export({ format: "jwk" }));
  const key = await importPKCS8(pem, SIGNATURE_ALGORITHM);
  return {
    algorithm: SIGNATURE_ALGORITHM,
    publicKey,
    fingerprint: fingerprintOf(publicKey),
    signJws: (type, payloadJson) =>
      new CompactSign(new TextEncoder().encode(payloadJson))
        .setProtectedHeader({ alg: SIGNATURE_ALGORITHM, typ: type })
        .sign(key),
  };
};

const codeOf = (thrown: unknown): unknown => (thrown instanceof Error && "code" in thrown ? thrown.code : undefined);

const ioFault = (path: string, doing: string, cause: unknown): Fault => {
  const system = toFault(cause);
  const why = system.code === "io_failed" ? `: ${system.message}` : "";
  return new Fault("io_failed", `cannot ${doing} the identity key ${path}${why}`, {
    hint: codeOf(cause) === "ENOSPC" ? "free disk space" : "check the owner and permissions of its folder",
    cause,
  });
};

/** Null when there is no file. */
const readKeyFile = (path: string): string | null => {
  let descriptor: number;
  try {
    descriptor = openSync(path, "r");
  } catch (thrown) {
    if (codeOf(thrown) === "ENOENT") return null;
    throw ioFault(path, "read", thrown);
  }
  try {
    // Asked of the open file, so that nobody can swap it between the check and the reading.
    const stat = fstatSync(descriptor);
    if (!stat.isFile() || stat.size > FILE_BYTES_MAX) throw corrupt(path);
    if ((stat.mode & OTHERS) !== 0)
      throw new Fault("config_invalid", `the identity key ${path} can be read by other users of this machine`, {
        hint: `chmod 600 ${path}`,
      });
    return readFileSync(descriptor, "utf8");
  } catch (thrown) {
    throw thrown instanceof Fault ? thrown : ioFault(path, "read", thrown);
  } finally {
    closeSync(descriptor);
  }
};

/** Written beside its place and linked into it whole: a crash leaves no half key, and of two processes one wins. */
const createKeyFile = (path: string): string => {
  const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const draft = `${path}.${randomBytes(8).toString("hex")}.new`;
  try {
    mkdirSync(dirname(path), { recursive: true, mode: FOLDER_MODE });
    const descriptor = openSync(draft, "wx", FILE_MODE);
    try {
      writeSync(descriptor, privateKey.export({ type: "pkcs8", format: "pem" }));
      fsyncSync(descriptor);
    } finally {
      closeSync(descriptor);
    }
    linkSync(draft, path);
  } catch (thrown) {
    if (codeOf(thrown) !== "EEXIST") throw ioFault(path, "create", thrown);
  } finally {
    removeDraft(draft);
  }
  const pem = readKeyFile(path);
  if (pem === null) throw ioFault(path, "create", undefined);
  return pem;
};

/** A file system that refuses the draft refuses its removal, too; the first refusal is the one to tell. */
const removeDraft = (draft: string): void => {
  if (existsSync(draft)) rmSync(draft, { force: true });
};

const corrupt = (path: string): Fault =>
  new Fault("config_invalid", `${path} holds no P-256 private key`, {
    hint: `restore it from a backup, or move it away to get a new identity: mv ${path} ${path}.broken`,
  });

const parseKey = (path: string, pem: string): KeyObject => {
  let key: KeyObject;
  try {
    key = createPrivateKey(pem);
  } catch {
    // The parser's message can hold parts of the key.
    throw corrupt(path);
  }
  if (key.asymmetricKeyType !== "ec" || key.asymmetricKeyDetails?.namedCurve !== "prime256v1") throw corrupt(path);
  return key;
};
