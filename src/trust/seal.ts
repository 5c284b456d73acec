/** Fresh keys per attempt between the coordinator and one provider, and the provider's own key with its replay cache. */
import type { Clock } from "../core/clock.ts";
import { assert, Fault } from "../core/fault.ts";
import type { Random } from "../core/ids.ts";
import { KEY_ROTATION_MS, REPLAY_IDS_MAX, RETIRED_KEY_MS } from "../core/limits.ts";
import { AesGcmFrameCipher } from "./frame-cipher.ts";
import {
  agreeAsRecipient,
  agreeAsSender,
  decodeKey32,
  deriveKeyPair,
  hopInfo,
  publicKeyBytes,
  type DirectionKeys,
} from "./hpke.ts";

/** One direction of one attempt; satisfies `FrameCipher` of `src/protocol/frames.ts`. */
export interface SealCipher {
  seal(header: Uint8Array, plaintext: Uint8Array): Uint8Array;
  open(header: Uint8Array, sealed: Uint8Array): Uint8Array;
  readonly nextSequence: number;
}

/** The coordinator seals with `request` and opens with `response`, the provider the reverse; the other use is a bug. */
export interface AttemptCiphers {
  readonly request: SealCipher;
  readonly response: SealCipher;
  /** Clears the keys; call it with the attempt's terminal. */
  wipe(): void;
}

export interface SealedAttempt {
  /** Base64 of HPKE's encapsulated key, for `inference_request.enc`. */
  readonly enc: string;
  readonly ciphers: AttemptCiphers;
}

const ciphersOf = (keys: DirectionKeys, requestRole: "seal" | "open"): AttemptCiphers => {
  const request = new AesGcmFrameCipher({ key: keys.request, role: requestRole });
  const response = new AesGcmFrameCipher({ key: keys.response, role: requestRole === "seal" ? "open" : "seal" });
  return {
    request,
    response,
    wipe() {
      request.wipe();
      response.wipe();
    },
  };
};

/** The coordinator's side. Throws `encryption_failed` when `kPublic` is no usable key. About 0.5 ms. */
export const sealToProvider = async (input: {
  readonly kPublic: string;
  readonly attemptId: string;
  readonly modelBuild: string;
}): Promise<SealedAttempt> => {
  const recipient = decodeKey32(input.kPublic);
  const { enc, keys } = await agreeAsSender({ recipient, info: hopInfo(input.attemptId, input.modelBuild) });
  return { enc: Buffer.from(enc).toString("base64"), ciphers: ciphersOf(keys, "seal") };
};

interface ProviderKey {
  readonly pair: CryptoKeyPair;
  /** Base64. */
  readonly publicKey: string;
  readonly createdAtMs: number;
  /** Attempt ids opened while this was the current key. */
  readonly openedIds: Set<string>;
}

export interface ProviderKeysDeps {
  readonly clock: Pick<Clock, "nowMs">;
  readonly random: Pick<Random, "bytes">;
  /** Size of the replay cache; REPLAY_IDS_MAX unless a test wants a small one. */
  readonly replayIdsMax?: number;
}

/** Rotation is asked for before the cache is full, because a new key needs a challenge to be announced in. */
const FULL_SHARE = 0.9;

/**
 * The provider's X25519 key `K` of this process. An attempt id opens once: its id is remembered until the key that could
 * open it is gone. After `rotate` the retired key still opens what was sealed before the coordinator knew its successor,
 * for RETIRED_KEY_MS; keys of attempts already open do not depend on `K` any more.
 */
export class ProviderKeys {
  readonly #deps: ProviderKeysDeps;
  readonly #replayIdsMax: number;
  #current: ProviderKey;
  #retired: { readonly key: ProviderKey; readonly untilMs: number } | null = null;

  private constructor(deps: ProviderKeysDeps, current: ProviderKey) {
    this.#deps = deps;
    this.#replayIdsMax = deps.replayIdsMax ?? REPLAY_IDS_MAX;
    this.#current = current;
  }

  static async create(deps: ProviderKeysDeps): Promise<ProviderKeys> {
    return new ProviderKeys(deps, await createKey(deps));
  }

  /** Base64 of `k_public`, as `register` and the statement name it. */
  get publicKey(): string {
    return this.#current.publicKey;
  }

  /** True once the replay cache is nearly full or the key is a day old: `rotate`, then put the new key into the next statement. */
  needsRotation(nowMs: number): boolean {
    return (
      this.#current.openedIds.size >= this.#replayIdsMax * FULL_SHARE ||
      nowMs - this.#current.createdAtMs >= KEY_ROTATION_MS
    );
  }

  async rotate(): Promise<void> {
    const key = await createKey(this.#deps);
    this.#retired = { key: this.#current, untilMs: this.#deps.clock.nowMs() + RETIRED_KEY_MS };
    this.#current = key;
  }

  /**
   * The ciphers of one attempt. Throws `encryption_failed` with reason `replayed` for an id opened before and
   * `open_failed` for an unusable `enc`; `capacity` when the replay cache is full and the key was not rotated.
   * An `enc` sealed to another key or for another model shows with the first frame. About 0.5 ms.
   */
  async open(input: {
    readonly enc: string;
    readonly attemptId: string;
    readonly modelBuild: string;
  }): Promise<AttemptCiphers> {
    const keys = this.#usableKeys();
    if (keys.some((key) => key.openedIds.has(input.attemptId)))
      throw new Fault("encryption_failed", "this attempt was opened before", { reason: "replayed" });
    if (this.#current.openedIds.size >= this.#replayIdsMax)
      throw new Fault("capacity", "the replay cache is full", { reason: "capacity_busy" });
    // Remembered before the first await, so that two opens at once cannot both pass.
    this.#current.openedIds.add(input.attemptId);
    const enc = decodeKey32(input.enc);
    const info = hopInfo(input.attemptId, input.modelBuild);
    const candidates = await Promise.all(
      keys.map(async ({ pair }) => ciphersOf(await agreeAsRecipient({ pair, enc, info }), "open")),
    );
    const [only, ...others] = candidates;
    assert(only !== undefined, "there is always a current key");
    return others.length === 0 ? only : firstThatOpens(candidates);
  }

  #usableKeys(): ProviderKey[] {
    if (this.#retired !== null && this.#deps.clock.nowMs() >= this.#retired.untilMs) this.#retired = null;
    return this.#retired === null ? [this.#current] : [this.#current, this.#retired.key];
  }
}

const createKey = async (deps: ProviderKeysDeps): Promise<ProviderKey> => {
  const seed = deps.random.bytes(32);
  const pair = await deriveKeyPair(seed);
  seed.fill(0);
  const publicKey = Buffer.from(await publicKeyBytes(pair)).toString("base64");
  return { pair, publicKey, createdAtMs: deps.clock.nowMs(), openedIds: new Set() };
};

/** Nothing in a request says which of two keys it was sealed to; the first frame tells, and the other candidate is cleared. */
const firstThatOpens = (candidates: readonly AttemptCiphers[]): AttemptCiphers => {
  let chosen: AttemptCiphers | null = null;
  const wipeAll = (except: AttemptCiphers | null): void => {
    for (const candidate of candidates) if (candidate !== except) candidate.wipe();
  };
  const open = (header: Uint8Array, sealed: Uint8Array): Uint8Array => {
    if (chosen !== null) return chosen.request.open(header, sealed);
    let failure: unknown;
    for (const candidate of candidates) {
      try {
        const plaintext = candidate.request.open(header, sealed);
        chosen = candidate;
        wipeAll(candidate);
        return plaintext;
      } catch (thrown) {
        failure = thrown;
      }
    }
    throw failure;
  };
  const unused = (): never => {
    throw new Error("assertion failed: the provider opens requests and seals responses");
  };
  const settled = (): AttemptCiphers => {
    assert(chosen !== null, "a response is sealed after its request was opened");
    return chosen;
  };
  return {
    request: {
      seal: unused,
      open,
      get nextSequence() {
        return chosen?.request.nextSequence ?? 0;
      },
    },
    response: {
      seal: (header, plaintext) => settled().response.seal(header, plaintext),
      open: unused,
      get nextSequence() {
        return chosen?.response.nextSequence ?? 0;
      },
    },
    wipe: () => wipeAll(null),
  };
};
