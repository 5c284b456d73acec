/** The public, stable name of a provider machine, which both ends derive from its signing key. */
import { createHash } from "node:crypto";

/** `prov_` and the first 24 hex digits of the SHA-256 of the identity key's text. */
export const providerIdOf = (identityKey: string): string =>
  `prov_${createHash("sha256").update(identityKey, "utf8").digest("hex").slice(0, 24)}`;
