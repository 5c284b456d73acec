// The C ABI between TypeScript (bun:ffi) and llama.cpp: every function the shim exports, and the rules they share.
//
// Rules. Every function returns a status (0 = ok, negative = one of DB_STATUS below); results leave through out-parameters.
// Handles are opaque pointers; a null handle is DB_INVALID. No C++ exception crosses this line. Text returned by the shim is
// allocated here, carries its length, and is freed with db_string_free. db_last_error is per thread, holds fixed text or
// llama.cpp's own words about a file it could not load, and never text of a prompt or an answer.
#pragma once

#include <stdint.h>

#define DB_ABI_VERSION 1

#ifdef __cplusplus
extern "C" {
#endif

enum db_status {
    DB_OK            = 0,
    DB_INVALID       = -1,   // an argument the caller should have checked
    DB_BAD_INPUT     = -2,   // messages or tools of a shape upstream refuses
    DB_TEMPLATE      = -3,   // the model's chat template refused or failed
    DB_LOAD          = -4,   // a library, model or context could not be made
    DB_DECODE        = -5,   // llama_decode failed
    DB_NO_SLOT       = -6,   // no room in the KV cache for this batch
    DB_ABORTED       = -7,   // the abort flag was raised during the decode
    DB_PARSE         = -8,   // the model's output does not follow its own format
    DB_GRAMMAR       = -9,   // a grammar upstream cannot compile
    DB_OUT_OF_MEMORY = -10,
    DB_INTERNAL      = -11,  // any other C++ exception
};

typedef struct db_model   db_model;
typedef struct db_context db_context;
typedef struct db_sampler db_sampler;
typedef struct db_chat    db_chat;
typedef struct db_parser  db_parser;

// Text out-parameter: the two words are filled with address and byte length.
typedef struct db_text {
    char *   data;
    uint64_t size;
} db_text;

// Progress of a load, 0 to 1, called on the loading thread; returning false ends the load.
typedef bool (*db_progress)(float fraction);

// ---- backend.cpp
int32_t      db_abi_version(void);
const char * db_last_error(void);
const char * db_llama_version(void);
int32_t      db_string_free(char * data);
// Loads one backend library by path, or every one of a folder; a second load of the same path in this process does nothing.
int32_t      db_backend_load(const char * path);
int32_t      db_backend_load_all(const char * dir);
int32_t      db_backend_init(void);
// JSON array of {name, description, type, freeBytes, totalBytes}.
int32_t      db_devices(db_text * out);
// The bounded log of the last loads (warnings and errors), newest last, and empties it.
int32_t      db_log_drain(db_text * out);

// ---- model.cpp
int32_t db_model_open(const char * path, int32_t gpu_layers, int32_t vocab_only, db_progress progress, db_model ** out);
int32_t db_model_close(db_model * model);
// 12 numbers, in the order of ffi/model.ts.
int32_t db_model_info(const db_model * model, int64_t * out, int32_t count);
int32_t db_model_description(const db_model * model, db_text * out);
// Empty data pointer when the key is absent.
int32_t db_model_meta(const db_model * model, const char * key, db_text * out);
// JSON object {temperature?, topK?, topP?, minP?} as texts: what the file recommends.
int32_t db_model_sampling(const db_model * model, db_text * out);
// Writes at most capacity tokens; count is how many there are (call again with more room when count > capacity).
int32_t db_tokenize(const db_model * model, const char * text, int32_t size, int32_t special, int32_t * tokens, int32_t capacity, int32_t * count);
// All pieces end to end; offsets has vocab + 1 entries, eog one flag per token.
int32_t db_pieces(const db_model * model, int32_t special, int32_t * offsets, uint8_t * eog, db_text * out);

// ---- context.cpp
// params: contextTokens, sequences, batchTokens, microBatchTokens, threads, threadsBatch, kvUnified, outputs.
// abort_flag: 32-bit word owned by the caller, read during a decode; it must outlive the context.
int32_t db_context_open(db_model * model, const int32_t * params, const int32_t * abort_flag, db_context ** out);
int32_t db_context_close(db_context * context);
int32_t db_context_tokens(const db_context * context, int32_t * out);
int32_t db_memory_remove(db_context * context, int32_t sequence, int32_t from, int32_t to, int32_t * removed);
int32_t db_memory_copy(db_context * context, int32_t from_sequence, int32_t to_sequence, int32_t from, int32_t to);
int32_t db_memory_keep(db_context * context, int32_t sequence);
int32_t db_memory_clear(db_context * context);
int32_t db_memory_position_max(const db_context * context, int32_t sequence, int32_t * out);
// One decode of count tokens, then for each of rows: sample from the logits of batch index row_index[i] with row_sampler[i]
// and accept the token. out_tokens[i] = -1 when that row's sampler failed (others go on).
// timing, when not null, receives nanoseconds of {llama_decode, the rest}.
int32_t db_step(db_context * context, int32_t count, const int32_t * tokens, const int32_t * positions, int32_t * sequences, int8_t * wanted,
                int32_t rows, const int32_t * row_index, db_sampler * const * row_sampler, int32_t * out_tokens, int64_t * timing);
int32_t db_logits(db_context * context, int32_t batch_index, float * out, int32_t count);

// ---- sampler.cpp
// JSON, see ffi/sampler.ts.
int32_t db_sampler_open(db_model * model, const char * options, int32_t size, db_sampler ** out);
int32_t db_sampler_close(db_sampler * sampler);
int32_t db_sampler_reset(db_sampler * sampler);

// ---- chat.cpp
int32_t db_chat_open(db_model * model, db_chat ** out);
int32_t db_chat_close(db_chat * chat);
// JSON object of upstream's template capabilities.
int32_t db_chat_capabilities(const db_chat * chat, db_text * out);
// JSON {messages, tools?, toolChoice, addGenerationPrompt} in, JSON of everything a row needs out, see ffi/chat.ts.
int32_t db_chat_apply(db_chat * chat, const char * request, int32_t size, db_text * out);
int32_t db_parser_open(const char * spec, int32_t size, db_parser ** out);
int32_t db_parser_close(db_parser * parser);
// Adds text to the answer and parses all of it; out is a JSON array of differences, or an empty pointer when there is none.
int32_t db_parser_push(db_parser * parser, const char * text, int32_t size, int32_t final, db_text * out);

#ifdef __cplusplus
}
#endif
