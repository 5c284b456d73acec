// A loaded GGUF file: its weights, what it says about itself, and its tokenizer.
#include "internal.h"

#include "common.h"
#include "json.h"

#include <cstring>

static bool report_progress(float fraction, void * user_data) {
    const db_progress report = (db_progress) user_data;
    return report(fraction);
}

DB_EXPORT int32_t db_model_open(const char * path, int32_t gpu_layers, int32_t vocab_only, db_progress progress, db_model ** out) {
    return db_guard([&] {
        llama_model_params params = llama_model_default_params();
        params.n_gpu_layers = gpu_layers;
        params.vocab_only   = vocab_only != 0;
        if (progress != nullptr) {
            params.progress_callback           = report_progress;
            params.progress_callback_user_data = (void *) progress;
        }
        const db_log_scope scope;
        llama_model * model = llama_model_load_from_file(path, params);
        if (model == nullptr) return db_fail(DB_LOAD, db_load_error("llama.cpp could not load the file").c_str());
        const llama_vocab * vocab = llama_model_get_vocab(model);
        *out = new db_model{model, vocab, llama_vocab_n_tokens(vocab)};
        return (int32_t) DB_OK;
    });
}

DB_EXPORT int32_t db_model_close(db_model * model) {
    return db_guard([&] {
        if (model == nullptr) return db_fail(DB_INVALID, "no model");
        llama_model_free(model->model);
        delete model;
        return (int32_t) DB_OK;
    });
}

DB_EXPORT int32_t db_model_info(const db_model * model, int64_t * out, int32_t count) {
    return db_guard([&] {
        if (model == nullptr || count != 12) return db_fail(DB_INVALID, "wrong size of model info");
        const llama_model * m = model->model;
        const int64_t values[12] = {
            llama_model_n_ctx_train(m), model->vocab_size, (int64_t) llama_model_size(m), (int64_t) llama_model_n_params(m),
            llama_model_n_layer(m), llama_model_n_embd(m), llama_model_has_encoder(m), llama_model_has_decoder(m),
            llama_model_is_recurrent(m), llama_model_is_hybrid(m), llama_vocab_get_add_bos(model->vocab), llama_vocab_type(model->vocab),
        };
        memcpy(out, values, sizeof(values));
        return (int32_t) DB_OK;
    });
}

DB_EXPORT int32_t db_model_description(const db_model * model, db_text * out) {
    return db_guard([&] {
        if (model == nullptr) return db_fail(DB_INVALID, "no model");
        char text[256];
        llama_model_desc(model->model, text, sizeof(text));
        return db_copy_text(text, out);
    });
}

// False when the key is absent. The value's length is known only after a first call.
static bool read_meta(const llama_model * model, const char * key, std::string & value) {
    const int32_t size = llama_model_meta_val_str(model, key, nullptr, 0);
    if (size < 0) return false;
    value.resize((size_t) size + 1);
    llama_model_meta_val_str(model, key, &value[0], value.size());
    value.resize((size_t) size);
    return true;
}

DB_EXPORT int32_t db_model_meta(const db_model * model, const char * key, db_text * out) {
    return db_guard([&] {
        if (model == nullptr) return db_fail(DB_INVALID, "no model");
        std::string value;
        if (read_meta(model->model, key, value)) return db_copy_text(value, out);
        *out = {nullptr, 0};
        return (int32_t) DB_OK;
    });
}

DB_EXPORT int32_t db_model_sampling(const db_model * model, db_text * out) {
    return db_guard([&] {
        if (model == nullptr) return db_fail(DB_INVALID, "no model");
        static const struct { const char * name; llama_model_meta_key key; } FIELDS[] = {
            {"temperature", LLAMA_MODEL_META_KEY_SAMPLING_TEMP}, {"topK", LLAMA_MODEL_META_KEY_SAMPLING_TOP_K},
            {"topP", LLAMA_MODEL_META_KEY_SAMPLING_TOP_P}, {"minP", LLAMA_MODEL_META_KEY_SAMPLING_MIN_P},
        };
        common_json found = common_json::object();
        for (const auto & field : FIELDS) {
            std::string value;
            if (read_meta(model->model, llama_model_meta_key_str(field.key), value)) found[field.name] = value;
        }
        return db_copy_text(found.dump_safe(), out);
    });
}

DB_EXPORT int32_t db_tokenize(const db_model * model, const char * text, int32_t size, int32_t special, int32_t * tokens, int32_t capacity, int32_t * count) {
    return db_guard([&] {
        if (model == nullptr || size < 0) return db_fail(DB_INVALID, "no text to tokenize");
        // BOS and EOS as the file asks for (add_special), marks such as <|im_start|> as tokens when special is set.
        const int32_t n = llama_tokenize(model->vocab, text, size, tokens, capacity, true, special != 0);
        *count = n < 0 ? -n : n;
        return (int32_t) DB_OK;
    });
}

DB_EXPORT int32_t db_pieces(const db_model * model, int32_t special, int32_t * offsets, uint8_t * eog, db_text * out) {
    return db_guard([&] {
        if (model == nullptr) return db_fail(DB_INVALID, "no model");
        std::string bytes;
        for (llama_token token = 0; token < model->vocab_size; token++) {
            offsets[token] = (int32_t) bytes.size();
            eog[token]     = llama_vocab_is_eog(model->vocab, token) ? 1 : 0;
            bytes += common_token_to_piece(model->vocab, token, special != 0);
        }
        offsets[model->vocab_size] = (int32_t) bytes.size();
        return db_copy_text(bytes, out);
    });
}
