/** The opened native library: one per thread, the only place that calls `dlopen`, and the checker behind every native call. */
import { dlopen, type Library, type Pointer, toArrayBuffer } from "bun:ffi";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { assert, Fault } from "../src/core/fault.ts";
import { type NativeLocation, toNativeFiles } from "./location.ts";
import { LLAMA_VERSION } from "./pin.ts";
import { SHIM_ABI_VERSION, SHIM_SYMBOLS, STATUS } from "./symbols.ts";

/** One compute device as the library sees it; for a GPU the memory is the device's own. */
export interface NativeDevice {
  readonly name: string;
  readonly description: string;
  readonly type: "cpu" | "gpu" | "igpu" | "accelerator";
  readonly freeBytes: number;
  readonly totalBytes: number;
}

type Symbols = Library<typeof SHIM_SYMBOLS>["symbols"];

const textDecoder = new TextDecoder();
const textEncoder = new TextEncoder();

/** NUL-terminated UTF-8 for a `const char *` argument. */
export const toCString = (text: string): Uint8Array => {
  assert(!text.includes("\0"), "a C string holds no NUL");
  return textEncoder.encode(`${text}\0`);
};

/** UTF-8 with its own length; never empty memory, because an empty view has no address. */
export const toSizedText = (text: string): { readonly bytes: Uint8Array; readonly size: number } => {
  const bytes = textEncoder.encode(text);
  return bytes.length === 0 ? { bytes: new Uint8Array(1), size: 0 } : { bytes, size: bytes.length };
};

export class Native {
  readonly symbols: Symbols;
  readonly location: NativeLocation;

  /** Use {@link openNative}. */
  constructor(location: NativeLocation, symbols: Symbols) {
    this.location = location;
    this.symbols = symbols;
  }

  /** Turns a status into the Fault of the world it stands for; `invalid` is our own bug and throws as one. */
  check(status: number): void {
    if (status === STATUS.ok) return;
    throw this.#toError(status);
  }

  /** Runs a call that writes a handle and returns it. */
  openHandle(call: (out: BigUint64Array) => number): Pointer {
    const out = new BigUint64Array(1);
    this.check(call(out));
    return Number(out[0]) as Pointer;
  }

  /** Runs a call that returns bytes; null when it returned none. The native copy is freed. */
  takeBytes(call: (out: BigUint64Array) => number): Uint8Array | null {
    const out = new BigUint64Array(2);
    this.check(call(out));
    const address = Number(out[0]) as Pointer;
    if (address === (0 as Pointer)) return null;
    const size = Number(out[1]);
    const bytes = size === 0 ? new Uint8Array(0) : new Uint8Array(toArrayBuffer(address, 0, size)).slice();
    this.symbols.db_string_free(address);
    return bytes;
  }

  takeText(call: (out: BigUint64Array) => number): string | null {
    const bytes = this.takeBytes(call);
    return bytes === null ? null : textDecoder.decode(bytes);
  }

  /** Like {@link takeText} for JSON the shim itself wrote. */
  takeJson(call: (out: BigUint64Array) => number): unknown {
    return JSON.parse(this.takeText(call) ?? "null");
  }

  /** All devices with their present free memory. */
  devices(): readonly NativeDevice[] {
    return this.takeJson((out) => this.symbols.db_devices(out)) as readonly NativeDevice[];
  }

  /** Warnings and errors of the loads since the last call, at most 64 short lines: words about files, never about prompts. */
  drainLoadLog(): readonly string[] {
    const text = this.takeText((out) => this.symbols.db_log_drain(out)) ?? "";
    return text.split("\n").filter((line) => line !== "");
  }

  /** The thread's last failure in words. */
  lastError(): string {
    return String(this.symbols.db_last_error());
  }

  #toError(status: number): Error {
    switch (status) {
      case STATUS.badInput:
        return new Fault("bad_request", "messages or tools have a shape the model's chat layer does not take");
      case STATUS.template:
        return new Fault("template_failed", this.lastError(), { reason: "jinja_template" });
      case STATUS.load:
        return new Fault("native_failed", this.lastError(), { reason: "load" });
      case STATUS.decode:
        return new Fault("native_failed", "the model could not compute a step", { reason: "decode" });
      case STATUS.noSlot:
        return new Fault("memory_short", "no room in the KV cache for this step", { reason: "kv_full" });
      case STATUS.aborted:
        return new Fault("cancelled", "the step was aborted", { reason: "aborted" });
      case STATUS.parse:
        return new Fault("engine_failed", this.lastError(), { reason: "output_parse" });
      case STATUS.grammar:
        return new Fault("bad_request", "the tools cannot be turned into a grammar", {
          reason: "grammar",
          param: "tools",
        });
      case STATUS.outOfMemory:
        return new Fault("memory_short", "the native library ran out of memory");
      case STATUS.internal:
        return new Fault("native_failed", "the native library failed unexpectedly", { reason: "exception" });
      default:
        return new Error(`native call refused its arguments (status ${status}): ${this.lastError()}`);
    }
  }
}

const openLibrary = (location: NativeLocation): Symbols => {
  try {
    return dlopen(location.shimPath, SHIM_SYMBOLS).symbols;
  } catch (cause) {
    throw new Fault("native_missing", `cannot open the native library ${location.shimPath}`, {
      hint: "run `darkbloom doctor` to see which library is missing",
      reason: "dlopen",
      cause,
    });
  }
};

const checkVersions = (symbols: Symbols, location: NativeLocation): void => {
  const abi = symbols.db_abi_version();
  if (abi !== SHIM_ABI_VERSION)
    throw new Fault("native_failed", `${location.shimPath} has ABI ${abi}, this program needs ${SHIM_ABI_VERSION}`, {
      reason: "abi_version",
    });
  const version = String(symbols.db_llama_version());
  if (version !== LLAMA_VERSION)
    throw new Fault(
      "native_failed",
      `llama.cpp in ${location.dir} is ${version}, this program needs ${LLAMA_VERSION}`,
      {
        reason: "llama_version",
      },
    );
};

const listFolder = (dir: string): readonly string[] => {
  try {
    return readdirSync(dir);
  } catch (cause) {
    throw new Fault("native_missing", `cannot read the folder of the native libraries, ${dir}`, { cause });
  }
};

/** GPU backends first, so that the library prefers them; then the one CPU backend that passed the self-test. */
const loadBackends = (native: Native): void => {
  const { dir, cpuBackend } = native.location;
  const { symbols } = native;
  if (cpuBackend === null) {
    native.check(symbols.db_backend_load_all(toCString(dir)));
  } else {
    const others = toNativeFiles(listFolder(dir))?.otherBackends ?? [];
    for (const name of [...others, cpuBackend]) native.check(symbols.db_backend_load(toCString(join(dir, name))));
  }
  native.check(symbols.db_backend_init());
};

const opened = new Map<string, Native>();

/**
 * Opens the libraries of a location, once per thread. Throws `native_missing` (library absent or unreadable) and
 * `native_failed` (other version than the pin, or no CPU backend).
 */
export const openNative = (location: NativeLocation): Native => {
  const known = opened.get(location.shimPath);
  if (known !== undefined) return known;
  const symbols = openLibrary(location);
  checkVersions(symbols, location);
  const native = new Native(location, symbols);
  loadBackends(native);
  opened.set(location.shimPath, native);
  return native;
};
