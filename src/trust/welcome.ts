/** The coordinator's signature over its `welcome`, by which a provider knows that it reached the one its join token names. */
import { z } from "zod";
import { canonicalJson } from "../core/canonical-json.ts";
import { Fault } from "../core/fault.ts";
import { fingerprintOf, peekPayload, verifyJws } from "./jws.ts";
import type { Signer } from "./signer.ts";

const TYPE = "darkbloom-welcome+jws";

/** The fields of the `welcome` message but `type` and `signature`. */
export interface WelcomeFields {
  readonly [key: string]: string | number | WelcomeFields;
}

/** Whom it is for: keys of the provider's own `register`. `k_public` is fresh per process, so an old welcome proves nothing. */
export interface WelcomeAudience {
  readonly identityKey: string;
  readonly kPublic: string;
}

/** The message's `signature`. */
export const signWelcome = (signer: Signer, fields: WelcomeFields, audience: WelcomeAudience): Promise<string> =>
  signer.signJws(
    TYPE,
    canonicalJson({
      coordinator_key: signer.publicKey,
      audience: { identity_key: audience.identityKey, k_public: audience.kPublic },
      welcome: fields,
    }),
  );

const payloadSchema = z.object({
  coordinator_key: z.string().max(128),
  audience: z.object({ identity_key: z.string(), k_public: z.string() }),
  welcome: z.unknown(),
});

/** True when every value read was signed; a newer coordinator may have signed more, which this version does not read. */
const covers = (signed: unknown, read: string | number | WelcomeFields): boolean => {
  if (typeof read !== "object") return signed === read;
  if (typeof signed !== "object" || signed === null) return false;
  const values = new Map<string, unknown>(Object.entries(signed));
  return Object.entries(read).every(([key, value]) => covers(values.get(key), value));
};

const refuse = (message: string): Fault =>
  new Fault("provider_rejected", message, {
    reason: "coordinator_key_mismatch",
    hint: "ask the coordinator's owner for a new token: darkbloom join-token create",
  });

/**
 * The coordinator's identity key. Throws `provider_rejected` when the signature does not cover these fields for this
 * provider, or when its key is not the pinned one; without a pinned fingerprint any key that signed is taken.
 */
export const verifyWelcome = async (input: {
  readonly signature: string;
  readonly fields: WelcomeFields;
  readonly audience: WelcomeAudience;
  readonly fingerprint: string | null;
}): Promise<string> => {
  const named = payloadSchema.safeParse(peekPayload(input.signature));
  if (!named.success) throw refuse("the coordinator's welcome is not signed");
  const { coordinator_key: key, audience, welcome } = named.data;
  if (input.fingerprint !== null && fingerprintOf(key) !== input.fingerprint)
    throw refuse("this is not the coordinator that the join token names");
  const isForUs = audience.identity_key === input.audience.identityKey && audience.k_public === input.audience.kPublic;
  const verified = await verifyJws({ type: TYPE, jws: input.signature, identityKey: key });
  if (verified === null || !isForUs || !covers(welcome, input.fields))
    throw refuse("the coordinator's welcome does not verify");
  return key;
};
