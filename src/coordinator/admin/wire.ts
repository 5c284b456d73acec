/** What crosses the admin socket: one operation with its input per request, its result or a fault per answer. */
import { z } from "zod";
import type { AdminOperations } from "./operations.ts";

const idSchema = z.object({ id: z.string().max(200) });

export const OPERATION_INPUTS = {
  createKey: z.object({ name: z.string().max(1000) }),
  listKeys: z.object({}),
  revokeKey: idSchema,
  createJoinToken: z.object({
    name: z.exactOptional(z.string().max(1000)),
    models: z.exactOptional(z.array(z.string().max(1000)).max(1000)),
    expiresAtMs: z.exactOptional(z.number().nullable()),
  }),
  listJoinTokens: z.object({}),
  revokeJoinToken: idSchema,
} as const satisfies Record<keyof AdminOperations, z.ZodType>;

export type OperationName = keyof typeof OPERATION_INPUTS;

export const operationSchema = z.object({
  operation: z.enum(Object.keys(OPERATION_INPUTS) as OperationName[]),
  input: z.unknown(),
});

export const faultSchema = z.object({
  code: z.string(),
  message: z.string(),
  hint: z.string().nullable(),
  param: z.string().nullable(),
});

/** Name of the socket inside the data folder. */
export const ADMIN_SOCKET = "admin.sock";
/** Longest path a Unix socket may have on every system we run on (macOS: 104 with its terminator). */
export const SOCKET_PATH_BYTES_MAX = 103;
