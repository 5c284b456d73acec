// A context over a model: the KV cache with its sequences, and the one call that runs a step of a batch.
#include "internal.h"

#include "sampling.h"

#include <chrono>
#include <cmath>
#include <cstring>

static bool abort_requested(void * flag) { return __atomic_load_n((const int32_t *) flag, __ATOMIC_RELAXED) != 0; }

DB_EXPORT int32_t db_context_open(db_model * model, const int32_t * params, const int32_t * abort_flag, db_context ** out) {
    return db_guard([&] {
        if (model == nullptr) return db_fail(DB_INVALID, "no model");
        llama_context_params p = llama_context_default_params();
        p.n_ctx               = (uint32_t) params[0];
        p.n_seq_max           = (uint32_t) params[1];
        p.n_batch             = (uint32_t) params[2];
        p.n_ubatch            = (uint32_t) params[3];
        p.n_threads           = params[4];
        p.n_threads_batch     = params[5];
        p.kv_unified          = params[6] != 0;
        // Logits are wanted for one token per sequence; room for every token of a batch would cost batch × vocabulary floats.
        p.n_outputs_max       = (uint32_t) params[7];
        p.no_perf             = true;
        p.abort_callback      = abort_requested;
        p.abort_callback_data = (void *) abort_flag;
        const db_log_scope scope;
        llama_context * context = llama_init_from_model(model->model, p);
        if (context == nullptr) return db_fail(DB_LOAD, db_load_error("llama.cpp could not make a context").c_str());
        db_context * made = new db_context{context, model->vocab_size, (int32_t) llama_n_batch(context), {}, {}};
        made->sequence_counts.assign((size_t) made->batch_max, 1);
        made->sequence_pointers.resize((size_t) made->batch_max);
        *out = made;
        return (int32_t) DB_OK;
    });
}

DB_EXPORT int32_t db_context_close(db_context * context) {
    return db_guard([&] {
        if (context == nullptr) return db_fail(DB_INVALID, "no context");
        llama_free(context->context);
        delete context;
        return (int32_t) DB_OK;
    });
}

DB_EXPORT int32_t db_context_tokens(const db_context * context, int32_t * out) {
    return db_guard([&] {
        if (context == nullptr) return db_fail(DB_INVALID, "no context");
        *out = (int32_t) llama_n_ctx(context->context);
        return (int32_t) DB_OK;
    });
}

// ---- memory sequences

// An encoder-only model has no memory: every call on it is refused rather than crashing in llama.cpp.
template <typename F> static int32_t with_memory(const db_context * context, F && body) {
    return db_guard([&] {
        if (context == nullptr) return db_fail(DB_INVALID, "no context");
        llama_memory_t memory = llama_get_memory(context->context);
        if (memory == nullptr) return db_fail(DB_INVALID, "this model keeps no sequences");
        body(memory);
        return (int32_t) DB_OK;
    });
}

DB_EXPORT int32_t db_memory_remove(db_context * context, int32_t sequence, int32_t from, int32_t to, int32_t * removed) {
    return with_memory(context, [&](llama_memory_t memory) { *removed = llama_memory_seq_rm(memory, sequence, from, to) ? 1 : 0; });
}
DB_EXPORT int32_t db_memory_copy(db_context * context, int32_t from_sequence, int32_t to_sequence, int32_t from, int32_t to) {
    return with_memory(context, [&](llama_memory_t memory) { llama_memory_seq_cp(memory, from_sequence, to_sequence, from, to); });
}
DB_EXPORT int32_t db_memory_keep(db_context * context, int32_t sequence) {
    return with_memory(context, [&](llama_memory_t memory) { llama_memory_seq_keep(memory, sequence); });
}
DB_EXPORT int32_t db_memory_clear(db_context * context) {
    return with_memory(context, [&](llama_memory_t memory) { llama_memory_clear(memory, false); });
}
DB_EXPORT int32_t db_memory_position_max(const db_context * context, int32_t sequence, int32_t * out) {
    return with_memory(context, [&](llama_memory_t memory) { *out = llama_memory_seq_pos_max(memory, sequence); });
}

// ---- step

static int32_t decode_status(int32_t result) {
    switch (result) {
        case 0:  return DB_OK;
        case 1:  return db_fail(DB_NO_SLOT, "no room in the KV cache");
        case 2:  return db_fail(DB_ABORTED, "the decode was aborted");
        default: return db_fail(DB_DECODE, "llama_decode failed");
    }
}

// The first of equal logits wins. Eight running maxima let the compiler use vector instructions: a vocabulary has up to 250,000 logits.
static llama_token first_maximum(const float * logits, int32_t count) {
    float lanes[8];
    for (float & lane : lanes) lane = -INFINITY;
    int32_t i = 0;
    for (; i + 8 <= count; i += 8) {
        for (int32_t j = 0; j < 8; j++) lanes[j] = logits[i + j] > lanes[j] ? logits[i + j] : lanes[j];
    }
    float best = -INFINITY;
    for (const float lane : lanes) best = lane > best ? lane : best;
    for (; i < count; i++) best = logits[i] > best ? logits[i] : best;
    for (i = 0; i < count; i++) {
        if (logits[i] == best) return i;
    }
    return LLAMA_TOKEN_NULL; // every logit is NaN
}

// The banned tokens (few) are hidden for the time of the scan, so that db_logits still sees what the model said.
static llama_token best_token(float * logits, int32_t vocab_size, const std::vector<llama_token> & banned) {
    std::vector<float> hidden(banned.size());
    for (size_t i = 0; i < banned.size(); i++) {
        hidden[i] = logits[banned[i]];
        logits[banned[i]] = -INFINITY;
    }
    const llama_token best = first_maximum(logits, vocab_size);
    for (size_t i = 0; i < banned.size(); i++) logits[banned[i]] = hidden[i];
    return best;
}

static llama_token sample_row(db_context * context, db_sampler * sampler, int32_t batch_index) noexcept {
    try {
        float * logits = llama_get_logits_ith(context->context, batch_index);
        if (logits == nullptr || sampler == nullptr) return LLAMA_TOKEN_NULL;
        if (sampler->argmax) return best_token(logits, context->vocab_size, sampler->banned);
        const llama_token token = common_sampler_sample(sampler->chain, context->context, batch_index);
        const llama_token_data_array * candidates = common_sampler_get_candidates(sampler->chain, false);
        // Nothing is allowed, e.g. the grammar has ended and end tokens are banned: accepting any token could end the process.
        if (candidates->selected < 0 || candidates->data[candidates->selected].logit == -INFINITY) return LLAMA_TOKEN_NULL;
        common_sampler_accept(sampler->chain, token, true);
        return token;
    } catch (...) {
        return LLAMA_TOKEN_NULL; // the grammar had no way on: this row ends, the others do not notice
    }
}

DB_EXPORT int32_t db_step(db_context * context, int32_t count, const int32_t * tokens, const int32_t * positions, int32_t * sequences, int8_t * wanted,
                          int32_t rows, const int32_t * row_index, db_sampler * const * row_sampler, int32_t * out_tokens, int64_t * timing) {
    return db_guard([&] {
        if (context == nullptr || count < 1 || count > context->batch_max) return db_fail(DB_INVALID, "wrong batch size");
        const auto begin = std::chrono::steady_clock::now();
        for (int32_t i = 0; i < count; i++) context->sequence_pointers[(size_t) i] = &sequences[i];
        llama_batch batch{};
        batch.n_tokens = count;
        batch.token    = const_cast<llama_token *>(tokens);
        batch.pos      = const_cast<llama_pos *>(positions);
        batch.n_seq_id = context->sequence_counts.data();
        batch.seq_id   = context->sequence_pointers.data();
        batch.logits   = wanted;
        const auto before = std::chrono::steady_clock::now();
        const int32_t status = decode_status(llama_decode(context->context, batch));
        if (status != DB_OK) return status;
        // Decoding is asynchronous on a GPU; waiting here also lets the timing below be honest.
        llama_synchronize(context->context);
        const auto after = std::chrono::steady_clock::now();
        for (int32_t i = 0; i < rows; i++) out_tokens[i] = sample_row(context, row_sampler[i], row_index[i]);
        if (timing != nullptr) {
            const auto end = std::chrono::steady_clock::now();
            timing[0] = std::chrono::duration_cast<std::chrono::nanoseconds>(after - before).count();
            timing[1] = std::chrono::duration_cast<std::chrono::nanoseconds>((before - begin) + (end - after)).count();
        }
        return (int32_t) DB_OK;
    });
}

DB_EXPORT int32_t db_logits(db_context * context, int32_t batch_index, float * out, int32_t count) {
    return db_guard([&] {
        if (context == nullptr || count != context->vocab_size) return db_fail(DB_INVALID, "wrong size of logits");
        const float * logits = llama_get_logits_ith(context->context, batch_index);
        if (logits == nullptr) return db_fail(DB_INVALID, "no logits were asked for at this index");
        memcpy(out, logits, (size_t) count * sizeof(float));
        return (int32_t) DB_OK;
    });
}
