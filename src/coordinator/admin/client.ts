/** Opens the owner's operations for a command: through the running coordinator, else on the database itself. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import type { Clock } from "../../core/clock.ts";
import { Fault, FAULTS, type FaultCode } from "../../core/fault.ts";
import type { Ids } from "../../core/ids.ts";
import type { CreatedJoinToken, JoinAddress } from "../accounts/join-tokens.ts";
import type { CreatedKey } from "../accounts/keys.ts";
import { openStore } from "../store/open-store.ts";
import { createAdminOperations, type AdminOperations, type JoinTokenListing, type KeyListing } from "./operations.ts";
import { ADMIN_SOCKET, faultSchema, SOCKET_PATH_BYTES_MAX, type OperationName } from "./wire.ts";

/** Name of the database inside the data folder. */
export const DATABASE_FILE = "coordinator.db";

const ANSWER_MS = 10_000;

export interface Admin extends AdminOperations, Disposable {}

export interface OpenAdminDeps {
  readonly clock: Pick<Clock, "nowMs">;
  readonly ids: Ids;
}

const answerSchema = z.union([z.object({ result: z.unknown() }), z.object({ fault: faultSchema })]);

const isFaultCode = (code: string): code is FaultCode => Object.hasOwn(FAULTS, code);

/** Null when nobody listens there any more. */
const post = async (path: string, operation: OperationName, input: unknown): Promise<Response | null> => {
  try {
    return await fetch("http://localhost/", {
      unix: path,
      method: "POST",
      body: JSON.stringify({ operation, input }),
      signal: AbortSignal.timeout(ANSWER_MS),
    });
  } catch (cause) {
    if ((cause as Error).name !== "TimeoutError") return null;
    throw new Fault("io_failed", "the running coordinator does not answer on its admin socket", { cause });
  }
};

const ask = async (path: string, operation: OperationName, input: unknown): Promise<{ result: unknown } | null> => {
  const response = await post(path, operation, input);
  if (response === null) return null;
  const parsed = answerSchema.safeParse(await response.json());
  if (!parsed.success)
    throw new Fault("io_failed", "the running coordinator gave an answer this version does not know", {
      hint: "use the same darkbloom for commands and coordinator",
    });
  if (!("fault" in parsed.data)) return { result: parsed.data.result };
  const { code, message, hint, param } = parsed.data.fault;
  throw new Fault(isFaultCode(code) ? code : "internal", message, {
    ...(hint === null ? {} : { hint }),
    ...(param === null ? {} : { param }),
  });
};

/**
 * The operations of the data folder's coordinator. `address` goes into new join tokens while none runs: a running one knows
 * its own. Each call tries the socket first, so that a coordinator that starts or stops meanwhile does no harm.
 */
export const openAdmin = (deps: OpenAdminDeps, dataDir: string, address: JoinAddress = {}): Admin => {
  const socket = join(dataDir, ADMIN_SOCKET);
  let direct: (AdminOperations & { close(): void }) | null = null;
  const openDirect = (): AdminOperations => {
    if (direct === null) {
      const store = openStore(deps, join(dataDir, DATABASE_FILE));
      direct = { ...createAdminOperations({ ...deps, store }, address), close: () => store.close() };
    }
    return direct;
  };
  const call = async <T>(operation: OperationName, input: unknown, fallback: (to: AdminOperations) => Promise<T>) => {
    const reachable = Buffer.byteLength(socket) <= SOCKET_PATH_BYTES_MAX && existsSync(socket);
    const answer = reachable ? await ask(socket, operation, input) : null;
    // The other end is this program, started by the same user on the same folder.
    return answer === null ? fallback(openDirect()) : (answer.result as T);
  };
  return {
    createKey: (input) => call<CreatedKey>("createKey", input, (to) => to.createKey(input)),
    listKeys: () => call<readonly KeyListing[]>("listKeys", {}, (to) => to.listKeys()),
    revokeKey: (id) => call<void>("revokeKey", { id }, (to) => to.revokeKey(id)),
    createJoinToken: (input) => call<CreatedJoinToken>("createJoinToken", input, (to) => to.createJoinToken(input)),
    listJoinTokens: () => call<readonly JoinTokenListing[]>("listJoinTokens", {}, (to) => to.listJoinTokens()),
    revokeJoinToken: (id) => call<void>("revokeJoinToken", { id }, (to) => to.revokeJoinToken(id)),
    [Symbol.dispose]: () => direct?.close(),
  };
};
