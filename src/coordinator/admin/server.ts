/** `admin.sock`: lets commands of the same user reach the running coordinator. The folder and the socket are the access check. */
import { chmodSync, mkdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { Fault, toFault } from "../../core/fault.ts";
import { jsonResponse, readBody } from "../../core/http.ts";
import { errorFields, type Log } from "../../core/log.ts";
import type { JoinAddress } from "../accounts/join-tokens.ts";
import { createAdminOperations, type AdminDeps, type AdminOperations } from "./operations.ts";
import { ADMIN_SOCKET, OPERATION_INPUTS, operationSchema, SOCKET_PATH_BYTES_MAX, type OperationName } from "./wire.ts";

const BODY_BYTES_MAX = 1024 * 1024;
const PROBE_MS = 1_000;

export interface AdminServer {
  stop(): Promise<void>;
}

const invoke = async (operations: AdminOperations, operation: OperationName, input: unknown): Promise<unknown> => {
  const parse = <N extends OperationName>(name: N) => {
    const result = OPERATION_INPUTS[name].safeParse(input);
    if (!result.success) throw new Fault("usage", `${operation}: the input is not valid`);
    return result.data as ReturnType<(typeof OPERATION_INPUTS)[N]["parse"]>;
  };
  switch (operation) {
    case "createKey":
      return operations.createKey(parse("createKey"));
    case "listKeys":
      return operations.listKeys();
    case "revokeKey":
      return operations.revokeKey(parse("revokeKey").id);
    case "createJoinToken":
      return operations.createJoinToken(parse("createJoinToken"));
    case "listJoinTokens":
      return operations.listJoinTokens();
    case "revokeJoinToken":
      return operations.revokeJoinToken(parse("revokeJoinToken").id);
  }
};

/** Null for what is no JSON, which no schema takes. */
const parseJson = (body: Uint8Array): unknown => {
  try {
    return JSON.parse(new TextDecoder().decode(body)) as unknown;
  } catch {
    return null;
  }
};

const handle = async (operations: AdminOperations, log: Log, request: Request): Promise<Response> => {
  try {
    const parsed = operationSchema.safeParse(parseJson(await readBody(request, BODY_BYTES_MAX)));
    if (!parsed.success) throw new Fault("usage", "not an admin operation");
    const { operation, input } = parsed.data;
    const result = await invoke(operations, operation, input);
    log[operation.startsWith("list") ? "debug" : "info"]("admin_operation_done", { operation });
    return jsonResponse({ result: result ?? null });
  } catch (thrown) {
    const fault = toFault(thrown);
    log.warn("admin_operation_failed", errorFields(fault));
    const { code, message, hint, param } = fault;
    return jsonResponse({ fault: { code, message, hint: hint ?? null, param: param ?? null } }, { status: 400 });
  }
};

/** True when somebody answers on the socket; false when only its file is left from a process that died. */
const isAlive = async (path: string): Promise<boolean> => {
  try {
    await fetch("http://localhost/", { unix: path, method: "POST", body: "{}", signal: AbortSignal.timeout(PROBE_MS) });
    return true;
  } catch (thrown) {
    // Somebody who takes the connection and says nothing is alive, too.
    return (thrown as Error).name === "TimeoutError";
  }
};

/** Tells a socket from its successor at the same path; null when there is none. */
const markOf = (path: string): string | null => {
  const stat = statSync(path, { bigint: true, throwIfNoEntry: false });
  return stat === undefined ? null : `${stat.ino}/${stat.ctimeNs}`;
};

/** Null without a data folder, or when its path is too long for a socket: commands then use the database. Throws `already_running`. */
export const startAdminServer = async (
  deps: AdminDeps & { readonly log: Log },
  input: {
    readonly dataDir: string | null;
    readonly address: JoinAddress;
    /** Called after a join token's end is stored. */
    readonly onTokenRevoked: (tokenId: string) => void;
  },
): Promise<AdminServer | null> => {
  if (input.dataDir === null) return null;
  const path = join(input.dataDir, ADMIN_SOCKET);
  if (Buffer.byteLength(path) > SOCKET_PATH_BYTES_MAX) {
    deps.log.warn("admin_socket_skipped", { reason: "path_too_long" });
    return null;
  }
  mkdirSync(input.dataDir, { recursive: true, mode: 0o700 });
  const found = markOf(path);
  if (found !== null) {
    // Of two coordinators that meet the same dead socket, the slower one must not remove the other's new one.
    if ((await isAlive(path)) || markOf(path) !== found)
      throw new Fault("already_running", "a coordinator runs on this data folder already", {
        hint: "stop it first, or give this one its own --data-dir",
      });
    rmSync(path, { force: true });
  }
  const onStore = createAdminOperations(deps, input.address);
  const operations: AdminOperations = {
    ...onStore,
    async revokeJoinToken(id) {
      await onStore.revokeJoinToken(id);
      input.onTokenRevoked(id);
    },
  };
  // No moment in which somebody else could connect: the mask holds while the socket is made.
  const mask = process.umask(0o177);
  let server: ReturnType<typeof Bun.serve>;
  try {
    server = Bun.serve({ unix: path, fetch: (request) => handle(operations, deps.log, request) });
  } finally {
    process.umask(mask);
  }
  chmodSync(path, 0o600);
  return {
    async stop() {
      await server.stop(true);
      rmSync(path, { force: true });
    },
  };
};
