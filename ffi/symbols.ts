/** Every function of the shim with its argument types; the counterpart of `ffi/shim/shim.h`. */
import { type FFIFunction, FFIType as T } from "bun:ffi";

/** Version of that table. Raised together with `DB_ABI_VERSION` on every change of a signature. */
export const SHIM_ABI_VERSION = 1;

export const SHIM_SYMBOLS = {
  db_abi_version: { args: [], returns: T.i32 },
  db_last_error: { args: [], returns: T.cstring },
  db_llama_version: { args: [], returns: T.cstring },
  db_string_free: { args: [T.ptr], returns: T.i32 },
  db_backend_load: { args: [T.ptr], returns: T.i32 },
  db_backend_load_all: { args: [T.ptr], returns: T.i32 },
  db_backend_init: { args: [], returns: T.i32 },
  db_devices: { args: [T.ptr], returns: T.i32 },
  db_log_drain: { args: [T.ptr], returns: T.i32 },

  db_model_open: { args: [T.ptr, T.i32, T.i32, T.ptr, T.ptr], returns: T.i32 },
  db_model_close: { args: [T.ptr], returns: T.i32 },
  db_model_info: { args: [T.ptr, T.ptr, T.i32], returns: T.i32 },
  db_model_description: { args: [T.ptr, T.ptr], returns: T.i32 },
  db_model_meta: { args: [T.ptr, T.ptr, T.ptr], returns: T.i32 },
  db_model_sampling: { args: [T.ptr, T.ptr], returns: T.i32 },
  db_tokenize: { args: [T.ptr, T.ptr, T.i32, T.i32, T.ptr, T.i32, T.ptr], returns: T.i32 },
  db_pieces: { args: [T.ptr, T.i32, T.ptr, T.ptr, T.ptr], returns: T.i32 },

  db_context_open: { args: [T.ptr, T.ptr, T.ptr, T.ptr], returns: T.i32 },
  db_context_close: { args: [T.ptr], returns: T.i32 },
  db_context_tokens: { args: [T.ptr, T.ptr], returns: T.i32 },
  db_memory_remove: { args: [T.ptr, T.i32, T.i32, T.i32, T.ptr], returns: T.i32 },
  db_memory_copy: { args: [T.ptr, T.i32, T.i32, T.i32, T.i32], returns: T.i32 },
  db_memory_keep: { args: [T.ptr, T.i32], returns: T.i32 },
  db_memory_clear: { args: [T.ptr], returns: T.i32 },
  db_memory_position_max: { args: [T.ptr, T.i32, T.ptr], returns: T.i32 },
  db_step: {
    args: [T.ptr, T.i32, T.ptr, T.ptr, T.ptr, T.ptr, T.i32, T.ptr, T.ptr, T.ptr, T.ptr],
    returns: T.i32,
  },
  db_logits: { args: [T.ptr, T.i32, T.ptr, T.i32], returns: T.i32 },

  db_sampler_open: { args: [T.ptr, T.ptr, T.i32, T.ptr], returns: T.i32 },
  db_sampler_close: { args: [T.ptr], returns: T.i32 },
  db_sampler_reset: { args: [T.ptr], returns: T.i32 },

  db_chat_open: { args: [T.ptr, T.ptr], returns: T.i32 },
  db_chat_close: { args: [T.ptr], returns: T.i32 },
  db_chat_capabilities: { args: [T.ptr, T.ptr], returns: T.i32 },
  db_chat_apply: { args: [T.ptr, T.ptr, T.i32, T.ptr], returns: T.i32 },
  db_parser_open: { args: [T.ptr, T.i32, T.ptr], returns: T.i32 },
  db_parser_close: { args: [T.ptr], returns: T.i32 },
  db_parser_push: { args: [T.ptr, T.ptr, T.i32, T.i32, T.ptr], returns: T.i32 },
} as const satisfies Record<string, FFIFunction>;

/** `enum db_status` of the shim. */
export const STATUS = {
  ok: 0,
  invalid: -1,
  badInput: -2,
  template: -3,
  load: -4,
  decode: -5,
  noSlot: -6,
  aborted: -7,
  parse: -8,
  grammar: -9,
  outOfMemory: -10,
  internal: -11,
} as const;
