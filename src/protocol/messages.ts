/** The control messages of protocol v1, both ways: types, decoding of untrusted text, encoding. */
import type { z } from "zod";
import { Fault } from "../core/fault.ts";
import { CONTROL_FRAME_BYTES_MAX } from "../core/limits.ts";
import { MESSAGE_TYPE } from "./_fields.ts";
import { COORDINATOR_SCHEMAS } from "./coordinator-messages.ts";
import { PROVIDER_SCHEMAS } from "./provider-messages.ts";

type MessageOf<Schemas extends Record<string, z.ZodType>> = {
  [Type in keyof Schemas]: z.infer<Schemas[Type]>;
}[keyof Schemas];

/** Provider to coordinator, discriminated by `type`. */
export type ProviderMessage = MessageOf<typeof PROVIDER_SCHEMAS>;
/** Coordinator to provider. */
export type CoordinatorMessage = MessageOf<typeof COORDINATOR_SCHEMAS>;

/** `unsupported` is the unknown type's name: answer with an `unsupported` message and carry on. */
export type Decoded<T> =
  | { readonly ok: true; readonly message: T }
  | { readonly ok: false; readonly unsupported: string };

const malformed = (what: string): Fault => new Fault("protocol_error", `malformed control message: ${what}`);

/** A UTF-16 code unit is at most three UTF-8 bytes, so most frames need no second look. */
const isTooLarge = (text: string): boolean =>
  text.length > CONTROL_FRAME_BYTES_MAX ||
  (text.length * 3 > CONTROL_FRAME_BYTES_MAX && Buffer.byteLength(text) > CONTROL_FRAME_BYTES_MAX);

const parseObject = (text: string): { readonly type: string } => {
  if (isTooLarge(text)) throw malformed("too large");
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    // The parser's message quotes its input, so it goes nowhere.
    throw malformed("not JSON");
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw malformed("not an object");
  const { type } = value as { type?: unknown };
  if (typeof type !== "string" || !MESSAGE_TYPE.test(type)) throw malformed("no type");
  return value as { readonly type: string };
};

/** Names of schemas and positions only: neither the value nor zod's prose, which can quote it. */
const pathOf = (error: z.ZodError): string => (error.issues[0]?.path ?? []).map(String).join(".");

const decoder = <Schemas extends Record<string, z.ZodType>>(schemas: Schemas) => {
  const byType = new Map<string, z.ZodType>(Object.entries(schemas));
  return (text: string): Decoded<MessageOf<Schemas>> => {
    const value = parseObject(text);
    const schema = byType.get(value.type);
    if (schema === undefined) return { ok: false, unsupported: value.type };
    const result = schema.safeParse(value);
    if (!result.success) throw malformed(`${value.type}, field ${pathOf(result.error)}`);
    return { ok: true, message: result.data as MessageOf<Schemas> };
  };
};

/** Throws `protocol_error` for text that is too large, no JSON object or not as its schema says; unknown keys are dropped. */
export const decodeProviderMessage: (text: string) => Decoded<ProviderMessage> = decoder(PROVIDER_SCHEMAS);
/** As `decodeProviderMessage`, for the other direction. */
export const decodeCoordinatorMessage: (text: string) => Decoded<CoordinatorMessage> = decoder(COORDINATOR_SCHEMAS);

export const encodeMessage = (message: ProviderMessage | CoordinatorMessage): string => JSON.stringify(message);
