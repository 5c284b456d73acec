/** Sealed attempts end to end: whatever happens to a frame on its way is noticed; keys rotate and ids open once. */
import { describe, expect, test } from "bun:test";
import * as fc from "fast-check";
import { REPLAY_IDS_MAX, KEY_ROTATION_MS, RETIRED_KEY_MS } from "../../src/core/limits.ts";
import {
  decodeFrame,
  FRAME_KIND,
  openFrame,
  sealFrame,
  type FrameCipher,
  type FrameKind,
} from "../../src/protocol/frames.ts";
import { AesGcmFrameCipher } from "../../src/trust/frame-cipher.ts";
import { sealToProvider, type AttemptCiphers } from "../../src/trust/seal.ts";
import { ATTEMPT_ID, MODEL, openProviderKeys, OTHER_ID } from "./_samples.ts";
import { rejectionOf } from "../support/rejection.ts";

const KEY = new Uint8Array(32).fill(42);
const cipher = (role: "seal" | "open", firstSequence = 0): AesGcmFrameCipher =>
  new AesGcmFrameCipher({ key: Uint8Array.from(KEY), role, firstSequence });
const open = (opener: FrameCipher, bytes: Uint8Array): Uint8Array => openFrame(opener, decodeFrame(bytes));
const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text);

const expectFailure = (run: () => unknown, reason?: string): void => {
  const fields = reason === undefined ? {} : { reason };
  expect(run).toThrow(expect.objectContaining({ code: "encryption_failed", ...fields }));
};

const openedPair = async (
  attemptId = ATTEMPT_ID,
): Promise<{ readonly coordinator: AttemptCiphers; readonly provider: AttemptCiphers }> => {
  const { keys } = await openProviderKeys();
  const { enc, ciphers } = await sealToProvider({ kPublic: keys.publicKey, attemptId, modelBuild: MODEL });
  return { coordinator: ciphers, provider: await keys.open({ enc, attemptId, modelBuild: MODEL }) };
};

const anyFrames = fc.array(
  fc.record({
    kind: fc.constantFrom<FrameKind>(FRAME_KIND.chunk, FRAME_KIND.terminal),
    plaintext: fc.uint8Array({ maxLength: 300 }),
  }),
  { minLength: 2, maxLength: 8 },
);
const sealAll = (frames: readonly { readonly kind: FrameKind; readonly plaintext: Uint8Array }[]): Uint8Array[] => {
  const sealer = cipher("seal");
  return frames.map(({ kind, plaintext }) => sealFrame(sealer, kind, ATTEMPT_ID, plaintext));
};

describe("any run of frames", () => {
  test("opens to what was sealed, in order", () => {
    fc.assert(
      fc.property(anyFrames, (frames) => {
        const opener = cipher("open");
        const opened = sealAll(frames).map((bytes) => Uint8Array.from(open(opener, bytes)));
        expect(opened).toEqual(frames.map((frame) => Uint8Array.from(frame.plaintext)));
        expect(opener.nextSequence).toBe(frames.length);
      }),
    );
  });

  test("fails where any single bit of it was changed, and stays failed", () => {
    fc.assert(
      fc.property(anyFrames, fc.nat(), fc.nat(), (frames, frameSeed, bitSeed) => {
        const sealed = sealAll(frames);
        const victim = frameSeed % sealed.length;
        const bytes = sealed[victim]!;
        const bit = bitSeed % (bytes.length * 8);
        bytes[bit >> 3] = bytes[bit >> 3]! ^ (1 << (bit & 7));
        const opener = cipher("open");
        for (const before of sealed.slice(0, victim)) open(opener, before);
        // A changed version or kind may already fail as a header; all else must fail as encryption.
        if (bit >> 3 > 1) expectFailure(() => open(opener, bytes));
        else expect(() => open(opener, bytes)).toThrow();
        bytes[bit >> 3] = bytes[bit >> 3]! ^ (1 << (bit & 7));
        if (bit >> 3 > 1) expectFailure(() => open(opener, bytes), "open_failed");
      }),
    );
  });

  test("fails where it was cut", () => {
    fc.assert(
      fc.property(anyFrames, fc.nat(), (frames, seed) => {
        const [first] = sealAll(frames);
        const bytes = first!;
        const cut = bytes.slice(0, 38 + (seed % Math.max(1, bytes.length - 38)));
        if (cut.length < bytes.length) expectFailure(() => open(cipher("open"), cut), "open_failed");
        else expect(open(cipher("open"), cut).length).toBe(bytes.length - 38);
      }),
    );
  });

  test("fails where frames were swapped, repeated or left out", () => {
    fc.assert(
      fc.property(anyFrames, fc.nat(), (frames, seed) => {
        const sealed = sealAll(frames);
        const at = seed % (sealed.length - 1);
        const opener = (): AesGcmFrameCipher => {
          const fresh = cipher("open");
          for (const before of sealed.slice(0, at)) open(fresh, before);
          return fresh;
        };
        expectFailure(() => open(opener(), sealed[at + 1]!), "sequence_mismatch");
        const replayed = opener();
        open(replayed, sealed[at]!);
        expectFailure(() => open(replayed, sealed[at]!), "sequence_mismatch");
      }),
    );
  });
});

describe("an attempt", () => {
  test("carries a request one way and chunks and terminal the other", async () => {
    const { coordinator, provider } = await openedPair();
    const request = sealFrame(coordinator.request, FRAME_KIND.request, ATTEMPT_ID, bytesOf("hello"));
    expect(new TextDecoder().decode(open(provider.request, request))).toBe("hello");
    const chunk = sealFrame(provider.response, FRAME_KIND.chunk, ATTEMPT_ID, bytesOf("[]"));
    const terminal = sealFrame(provider.response, FRAME_KIND.terminal, ATTEMPT_ID, bytesOf("{}"));
    expect(new TextDecoder().decode(open(coordinator.response, chunk))).toBe("[]");
    expect(new TextDecoder().decode(open(coordinator.response, terminal))).toBe("{}");
  });

  test("does not open what belongs to another attempt or the other direction", async () => {
    const [one, two] = [await openedPair(), await openedPair(OTHER_ID)];
    const chunk = (): Uint8Array => sealFrame(one.provider.response, FRAME_KIND.chunk, ATTEMPT_ID, bytesOf("[]"));
    expectFailure(() => open(two.coordinator.response, chunk()), "open_failed");
    const reflected = sealFrame(one.coordinator.request, FRAME_KIND.request, ATTEMPT_ID, bytesOf("x"));
    expectFailure(() => open(one.coordinator.response, reflected), "open_failed");
  });

  test("does not open under another id, another model or another provider's key", async () => {
    const { keys } = await openProviderKeys();
    const other = await openProviderKeys();
    await other.keys.rotate();
    await other.clock.advance(RETIRED_KEY_MS);
    const cases = [
      [keys, { attemptId: OTHER_ID, modelBuild: MODEL }],
      [keys, { attemptId: ATTEMPT_ID, modelBuild: "another" }],
      [other.keys, { attemptId: ATTEMPT_ID, modelBuild: MODEL }],
    ] as const;
    for (const [opener, input] of cases) {
      const { enc, ciphers } = await sealToProvider({
        kPublic: keys.publicKey,
        attemptId: ATTEMPT_ID,
        modelBuild: MODEL,
      });
      const provider = await opener.open({ enc, ...input });
      const frame = sealFrame(ciphers.request, FRAME_KIND.request, ATTEMPT_ID, bytesOf("x"));
      expectFailure(() => open(provider.request, frame), "open_failed");
    }
  });

  test("is of no use after its keys were wiped", async () => {
    const { coordinator, provider } = await openedPair();
    const request = sealFrame(coordinator.request, FRAME_KIND.request, ATTEMPT_ID, bytesOf("hello"));
    coordinator.wipe();
    provider.wipe();
    expectFailure(() => open(provider.request, request));
    expectFailure(() => sealFrame(coordinator.request, FRAME_KIND.request, ATTEMPT_ID, bytesOf("again")));
  });

  test("uses a direction one way only, and a sequence once", async () => {
    const { coordinator } = await openedPair();
    const frame = sealFrame(cipher("seal"), FRAME_KIND.chunk, ATTEMPT_ID, bytesOf("x"));
    expect(() => open(coordinator.request, frame)).toThrow("assertion failed");
    expect(() => sealFrame(coordinator.response, FRAME_KIND.chunk, ATTEMPT_ID, bytesOf("x"))).toThrow(
      "assertion failed",
    );
    const sealer = cipher("seal");
    const header = decodeFrame(sealFrame(sealer, FRAME_KIND.chunk, ATTEMPT_ID, bytesOf("x"))).header;
    expect(() => sealer.seal(header, bytesOf("y"))).toThrow("assertion failed");
  });

  test("ends with its last sequence number", () => {
    const [sealer, opener] = [cipher("seal", 2 ** 32 - 1), cipher("open", 2 ** 32 - 1)];
    const last = sealFrame(sealer, FRAME_KIND.chunk, ATTEMPT_ID, bytesOf("last"));
    expect(decodeFrame(last).sequence).toBe(2 ** 32 - 1);
    expect(new TextDecoder().decode(open(opener, last))).toBe("last");
    expectFailure(() => sealFrame(sealer, FRAME_KIND.chunk, ATTEMPT_ID, bytesOf("one more")), "sequence_mismatch");
    expectFailure(() => open(opener, last), "sequence_mismatch");
  });
});

describe("provider keys", () => {
  const sealed = (kPublic: string, attemptId = ATTEMPT_ID): ReturnType<typeof sealToProvider> =>
    sealToProvider({ kPublic, attemptId, modelBuild: MODEL });

  test("open an attempt id once, even when asked twice at the same time", async () => {
    const { keys } = await openProviderKeys();
    const { enc } = await sealed(keys.publicKey);
    const input = { enc, attemptId: ATTEMPT_ID, modelBuild: MODEL };
    const [first, second] = await Promise.allSettled([keys.open(input), keys.open(input)]);
    expect(first.status).toBe("fulfilled");
    expect(second).toMatchObject({ status: "rejected", reason: { code: "encryption_failed", reason: "replayed" } });
    expect(await rejectionOf(keys.open(input))).toMatchObject({ reason: "replayed" });
  });

  test("remember the id of an attempt that could not be opened", async () => {
    const { keys } = await openProviderKeys();
    const input = { enc: "AAAA", attemptId: ATTEMPT_ID, modelBuild: MODEL };
    expect(await rejectionOf(keys.open(input))).toMatchObject({ reason: "open_failed" });
    expect(await rejectionOf(keys.open(input))).toMatchObject({ reason: "replayed" });
  });

  test("ask for rotation when nearly full or a day old, and refuse when full", async () => {
    const { keys, clock } = await openProviderKeys(10);
    const { enc } = await sealed(keys.publicKey);
    const openOne = (index: number): Promise<AttemptCiphers> =>
      keys.open({ enc, attemptId: `00000000-0000-4000-8000-00000000000${index}`, modelBuild: MODEL });
    for (let index = 0; index < 8; index += 1) await openOne(index);
    expect(keys.needsRotation(clock.nowMs())).toBe(false);
    await openOne(8);
    expect(keys.needsRotation(clock.nowMs())).toBe(true);
    await openOne(9);
    expect(await rejectionOf(keys.open({ enc, attemptId: OTHER_ID, modelBuild: MODEL }))).toMatchObject({
      code: "capacity",
    });
    await keys.rotate();
    expect(keys.needsRotation(clock.nowMs())).toBe(false);
    await keys.open({ enc, attemptId: OTHER_ID, modelBuild: MODEL });
    await clock.advance(KEY_ROTATION_MS - 1);
    expect(keys.needsRotation(clock.nowMs())).toBe(false);
    await clock.advance(1);
    expect(keys.needsRotation(clock.nowMs())).toBe(true);
  });

  test("still open what was sealed before a rotation, for a while and not twice", async () => {
    const { keys, clock } = await openProviderKeys();
    const oldPublic = keys.publicKey;
    const early = await sealed(oldPublic);
    await keys.open({ enc: early.enc, attemptId: ATTEMPT_ID, modelBuild: MODEL });
    await keys.rotate();
    expect(keys.publicKey).not.toBe(oldPublic);
    expect(await rejectionOf(keys.open({ enc: early.enc, attemptId: ATTEMPT_ID, modelBuild: MODEL }))).toMatchObject({
      reason: "replayed",
    });
    for (const [kPublic, attemptId] of [
      [oldPublic, "00000000-0000-4000-8000-000000000001"],
      [keys.publicKey, "00000000-0000-4000-8000-000000000002"],
    ] as const) {
      const { enc, ciphers } = await sealed(kPublic, attemptId);
      const provider = await keys.open({ enc, attemptId, modelBuild: MODEL });
      for (const text of ["one", "two"]) {
        const frame = sealFrame(ciphers.request, FRAME_KIND.request, attemptId, bytesOf(text));
        expect(new TextDecoder().decode(open(provider.request, frame))).toBe(text);
      }
      const answer = sealFrame(provider.response, FRAME_KIND.chunk, attemptId, bytesOf("[]"));
      expect(new TextDecoder().decode(open(ciphers.response, answer))).toBe("[]");
    }
    await clock.advance(RETIRED_KEY_MS);
    const late = await sealed(oldPublic, OTHER_ID);
    const provider = await keys.open({ enc: late.enc, attemptId: OTHER_ID, modelBuild: MODEL });
    expectFailure(
      () => open(provider.request, sealFrame(late.ciphers.request, FRAME_KIND.request, OTHER_ID, bytesOf("x"))),
      "open_failed",
    );
  });

  test("during a rotation a changed frame fails for both keys, and no answer can be sealed", async () => {
    const { keys } = await openProviderKeys();
    await keys.rotate();
    const { enc, ciphers } = await sealed(keys.publicKey);
    const provider = await keys.open({ enc, attemptId: ATTEMPT_ID, modelBuild: MODEL });
    const frame = sealFrame(ciphers.request, FRAME_KIND.request, ATTEMPT_ID, bytesOf("x"));
    const changed = Uint8Array.from(frame);
    changed[30] = changed[30]! ^ 1;
    expectFailure(() => open(provider.request, changed), "open_failed");
    expectFailure(() => open(provider.request, frame), "open_failed");
    expect(() => sealFrame(provider.response, FRAME_KIND.chunk, ATTEMPT_ID, bytesOf("x"))).toThrow("assertion failed");
  });

  test("remember as many ids as the design says", () => {
    expect(REPLAY_IDS_MAX).toBe(200_000);
  });
});
