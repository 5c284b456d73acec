// What the shim's files share: the handles' contents and the guard that turns exceptions into statuses. Not part of the ABI.
#pragma once

#include "shim.h"

#include "llama.h"

#include <new>
#include <string>
#include <vector>

#define DB_EXPORT extern "C" __attribute__((visibility("default")))

struct common_sampler;

struct db_model {
    llama_model *       model;
    const llama_vocab * vocab;
    int32_t             vocab_size;
};

struct db_context {
    llama_context * context;
    int32_t         vocab_size;
    int32_t         batch_max;
    // llama_batch wants a count and a pointer per token; ours always names one sequence, so both are made once.
    std::vector<int32_t>        sequence_counts;
    std::vector<llama_seq_id *> sequence_pointers;
};

struct db_sampler {
    common_sampler * chain = nullptr;
    // Greedy without a grammar needs no candidate list: the best logit that is not banned.
    bool                     argmax = false;
    std::vector<llama_token> banned;
};

// Fixed text only: whatever is kept here may be printed.
void    db_set_error(const char * text);
int32_t db_fail(int32_t status, const char * text);
int32_t db_copy_text(const std::string & text, db_text * out);

// While one lives, warnings and errors that llama.cpp logs on this thread are kept; at any other time they are dropped,
// because during a chat they can quote it.
struct db_log_scope {
    db_log_scope();
    ~db_log_scope();
};
// The first error logged since the scope began, or the given text.
std::string db_load_error(const char * otherwise);

// While one lives, the C standard error stream leads nowhere: upstream's grammar parser and schema converter print their input
// there, which is a consumer's, when they dislike it. Only native code is affected; the program itself writes to the descriptor.
struct db_quiet_stderr {
    db_quiet_stderr();
    ~db_quiet_stderr();
};

template <typename F> int32_t db_guard(F && body) noexcept {
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return db_fail(DB_OUT_OF_MEMORY, "out of memory");
    } catch (...) {
        // what() may quote the input, so it is not kept.
        return db_fail(DB_INTERNAL, "unexpected native exception");
    }
}
