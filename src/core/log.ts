/** Structured logs: past-tense event names, flat fields, one line each, on stderr; sealed values cannot be printed. */
import type { Clock } from "./clock.ts";
import { Fault } from "./fault.ts";

export const LOG_LEVELS = ["debug", "info", "warn", "error"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Flat and primitive on purpose: an object could carry a prompt. */
export type LogFields = Readonly<Record<string, string | number | boolean | null | undefined>>;

export interface Log {
  debug(event: string, fields?: LogFields): void;
  info(event: string, fields?: LogFields): void;
  warn(event: string, fields?: LogFields): void;
  error(event: string, fields?: LogFields): void;
  /** A logger whose lines all carry these fields too. */
  with(fields: LogFields): Log;
}

export interface LogOptions {
  readonly clock: Pick<Clock, "nowMs">;
  readonly level: LogLevel;
  readonly format: "json" | "text";
  readonly write: (line: string) => void;
}

const FIELD_CHARS_MAX = 2_000;

/** The type forbids objects; a value that slips past it is named by its kind, never printed. */
const toFieldValue = (value: unknown): string | number | boolean | null => {
  if (value === null || typeof value === "number" || typeof value === "boolean") return value;
  if (typeof value === "string") return value.length > FIELD_CHARS_MAX ? `${value.slice(0, FIELD_CHARS_MAX)}…` : value;
  return `[${typeof value}]`;
};

const toText = (at: string, level: LogLevel, event: string, fields: Record<string, unknown>): string => {
  const pairs = Object.entries(fields).map(([key, value]) => ` ${key}=${JSON.stringify(value)}`);
  return `${at} ${level.padEnd(5)} ${event}${pairs.join("")}\n`;
};

export const createLog = (options: LogOptions, bound: LogFields = {}): Log => {
  const threshold = LOG_LEVELS.indexOf(options.level);
  const emit = (level: LogLevel, event: string, fields: LogFields = {}): void => {
    if (LOG_LEVELS.indexOf(level) < threshold) return;
    const at = new Date(options.clock.nowMs()).toISOString();
    const flat: Record<string, unknown> = {};
    for (const [key, value] of Object.entries({ ...bound, ...fields }))
      if (value !== undefined) flat[key] = toFieldValue(value);
    options.write(
      options.format === "json" ? `${JSON.stringify({ at, level, event, ...flat })}\n` : toText(at, level, event, flat),
    );
  };
  return {
    debug: (event, fields) => emit("debug", event, fields),
    info: (event, fields) => emit("info", event, fields),
    warn: (event, fields) => emit("warn", event, fields),
    error: (event, fields) => emit("error", event, fields),
    with: (fields) => createLog(options, { ...bound, ...fields }),
  };
};

/**
 * Fields that describe a failure. A Fault's message is ours and safe; a foreign error's message may quote its input
 * (JSON.parse does), so only its name and stack frames are kept.
 */
export const errorFields = (thrown: unknown): LogFields => {
  if (thrown instanceof Fault) {
    const cause = thrown.cause === undefined ? {} : errorFields(thrown.cause);
    return {
      fault: thrown.code,
      reason: thrown.reason,
      message: thrown.message,
      cause: cause["error"] ?? cause["fault"],
      stack: cause["stack"],
    };
  }
  if (!(thrown instanceof Error)) return { error: typeof thrown };
  const frames = (thrown.stack ?? "").split("\n").filter((line) => line.startsWith("    at "));
  return {
    error: thrown.name,
    stack: frames
      .slice(0, 8)
      .map((line) => line.trim())
      .join(" < "),
  };
};
