/** Zod schemas of the small values that cross several doors: identifiers, digests, keys, bounded numbers. */
import { z } from "zod";

/** Lower-case hex SHA-256. */
export const sha256Field = z.string().regex(/^[0-9a-f]{64}$/);
/** Lower-case UUID text. */
export const uuidField = z.string().regex(/^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
/** Base64 of 32 bytes, in its one canonical spelling: nonces, X25519 keys, HPKE's `enc`. */
export const base64Key32Field = z.string().regex(/^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$/);
/** A model id as providers and consumers name it; no control characters, because it is shown and logged. */
export const modelIdField = z.string().regex(/^[\p{L}\p{N}][\p{L}\p{N}\p{P}\p{S} ]{0,199}$/u);
/** Text for people: bounded, one line. */
export const lineField = (charsMax: number): z.ZodString =>
  z
    .string()
    .max(charsMax)
    .regex(/^[^\p{Cc}\p{Zl}\p{Zp}]*$/u);

/** A whole number from 0 on that a double holds exactly. */
export const countField = z.number().int().min(0);
/** Finite, not negative; what lies above the bound counts as the bound, so that no report can skew a sum. */
export const clampedField = (max: number): z.ZodNumber =>
  z
    .number()
    .min(0)
    .overwrite((value) => Math.min(value, max));
/** Whole, not negative, clamped like the above. */
export const clampedCountField = (max: number): z.ZodNumber => countField.overwrite((value) => Math.min(value, max));

/** One of a closed vocabulary; a word this version does not know becomes the fallback, so that newer peers stay readable. */
export const foldedField = <const T extends string>(words: readonly T[], fallback: NoInfer<T>) => {
  const known = new Set<string>(words);
  return z
    .string()
    .max(64)
    .transform((word): T => (known.has(word) ? (word as T) : fallback));
};
