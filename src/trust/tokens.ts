/** Join tokens, and how secrets of every kind are stored and shown. */
import { createHash } from "node:crypto";
import { z } from "zod";
import { Fault } from "../core/fault.ts";

const SECRET = /^jt-db-[0-9a-f]{64}$/;
const FINGERPRINT = /^[0-9a-f]{32}$/;
const TOKEN_CHARS_MAX = 4096;
const SCHEMES: ReadonlySet<string> = new Set(["ws:", "wss:", "http:", "https:"]);

export interface JoinToken {
  /** `jt-db-<64 hex>`: what is sent, hashed and stored. */
  readonly secret: string;
  /** Where the coordinator is. */
  readonly url?: string;
  /** `Signer.fingerprint` of the coordinator's identity key, which its `welcome` must be signed with. */
  readonly fingerprint?: string;
}

const isCoordinatorUrl = (text: string): boolean => URL.canParse(text) && SCHEMES.has(new URL(text).protocol);

const hintsSchema = z.object({
  u: z.string().max(2048).refine(isCoordinatorUrl).optional(),
  f: z.string().regex(FINGERPRINT).optional(),
});

const invalid = (): Fault =>
  new Fault("usage", "this is not a join token", { hint: "make one with `darkbloom join-token create`" });

/** The secret alone, or followed by `.` and base64url of `{u: url, f: fingerprint}`. */
export const makeJoinToken = (token: JoinToken): string => {
  if (token.url === undefined && token.fingerprint === undefined) return token.secret;
  const hints = Buffer.from(JSON.stringify({ u: token.url, f: token.fingerprint })).toString("base64url");
  return `${token.secret}.${hints}`;
};

/** Throws `usage`, without quoting the text: most of it is a secret. */
export const parseJoinToken = (text: string): JoinToken => {
  const trimmed = text.trim();
  const [secret = "", hints, ...rest] = trimmed.split(".");
  if (trimmed.length > TOKEN_CHARS_MAX || rest.length > 0 || !SECRET.test(secret)) throw invalid();
  if (hints === undefined) return { secret };
  const { u, f } = parseHints(hints);
  return { secret, ...(u === undefined ? {} : { url: u }), ...(f === undefined ? {} : { fingerprint: f }) };
};

const parseHints = (text: string): z.infer<typeof hintsSchema> => {
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(text, "base64url").toString("utf8"));
  } catch {
    throw invalid();
  }
  const result = hintsSchema.safeParse(value);
  if (!result.success) throw invalid();
  return result.data;
};

/** Lower-case hex SHA-256 of the whole secret: all that is stored of it. */
export const hashSecret = (text: string): string => createHash("sha256").update(text, "utf8").digest("hex");

/** How a secret is shown after its creation. */
export const labelOf = (secret: string): string => `${secret.slice(0, 10)}…${secret.slice(-4)}`;
