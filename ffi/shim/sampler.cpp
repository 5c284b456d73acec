// How the next token of one row is chosen.
//
// Upstream's common_sampler is used rather than a chain of our own: libllama-common exports it, and it carries the parts that are
// easy to get wrong: lazy grammars with their triggers, resampling when the chosen token breaks the grammar, no grammar inside a
// thinking block, and the order of the samplers. So a row samples exactly as llama-server would. One shortcut: greedy without a
// grammar is the best logit, which needs no list of candidates.
#include "internal.h"

#include "common.h"
#include "json.h"
#include "sampling.h"

#include <cmath>
#include <memory>

static std::vector<llama_token> banned_tokens(const db_model * model, bool ignore_eos) {
    std::vector<llama_token> banned;
    int32_t count = 0;
    const llama_token * suppressed = llama_vocab_get_suppress_tokens(model->vocab, &count);
    for (int32_t i = 0; i < count; i++) {
        if (suppressed[i] >= 0 && suppressed[i] < model->vocab_size) banned.push_back(suppressed[i]);
    }
    for (llama_token token = 0; ignore_eos && token < model->vocab_size; token++) {
        if (llama_vocab_is_eog(model->vocab, token)) banned.push_back(token);
    }
    return banned;
}

static std::vector<llama_token> one_tag(const llama_vocab * vocab, const std::string & tag) { return common_tokenize(vocab, tag, false, true); }

// The grammar part of what db_chat_apply returned, turned back into upstream's parameters as its server does.
static void read_grammar(const db_model * model, const common_json & grammar, common_params_sampling & params) {
    params.grammar           = common_grammar(COMMON_GRAMMAR_TYPE_TOOL_CALLS, grammar.at("text").get<std::string>());
    params.grammar_lazy      = grammar.at("lazy").get<bool>();
    params.generation_prompt = grammar.at("generationPrompt").get<std::string>();
    for (const common_json & item : grammar.at("triggers")) {
        common_grammar_trigger trigger;
        trigger.type  = (common_grammar_trigger_type) item.at("type").get<int>();
        trigger.value = item.at("value").get<std::string>();
        trigger.token = item.at("token").get<int>();
        params.grammar_triggers.push_back(trigger);
    }
    for (const common_json & item : grammar.at("preservedTokens")) params.preserved_tokens.insert(item.get<int>());
    const std::string start = grammar.at("thinkingStart").get<std::string>();
    if (start.empty() || grammar.at("thinkingEnds").empty()) return;
    params.reasoning_budget_start = one_tag(model->vocab, start);
    for (const common_json & item : grammar.at("thinkingEnds")) params.reasoning_budget_end.push_back(one_tag(model->vocab, item.get<std::string>()));
    params.reasoning_budget_forced = params.reasoning_budget_end.front();
}

static common_params_sampling read_options(const db_model * model, const common_json & options) {
    common_params_sampling params;
    params.seed    = options.at("seed").get<uint32_t>();
    params.temp    = options.at("temperature").get<float>();
    params.top_k   = options.at("topK").get<int>();
    params.top_p   = options.at("topP").get<float>();
    params.min_p   = options.at("minP").get<float>();
    params.no_perf = true;
    params.ignore_eos = options.at("ignoreEos").get<bool>();
    if (params.ignore_eos) {
        for (llama_token token = 0; token < model->vocab_size; token++) {
            if (llama_vocab_is_eog(model->vocab, token)) params.logit_bias.push_back({token, -INFINITY});
        }
    }
    if (options.contains("grammar")) read_grammar(model, options.at("grammar"), params);
    return params;
}

DB_EXPORT int32_t db_sampler_open(db_model * model, const char * options, int32_t size, db_sampler ** out) {
    return db_guard([&] {
        if (model == nullptr || size < 0) return db_fail(DB_INVALID, "no sampler options");
        common_params_sampling params = read_options(model, common_json::parse(std::string(options, (size_t) size)));
        auto sampler = std::make_unique<db_sampler>();
        sampler->argmax = params.temp <= 0.0f && params.grammar.empty();
        if (sampler->argmax) {
            sampler->banned = banned_tokens(model, params.ignore_eos);
        } else {
            const db_quiet_stderr quiet;
            try {
                sampler->chain = common_sampler_init(model->model, params);
            } catch (const std::exception &) {
                return db_fail(DB_GRAMMAR, "the grammar could not be compiled");
            }
        }
        *out = sampler.release();
        return (int32_t) DB_OK;
    });
}

DB_EXPORT int32_t db_sampler_close(db_sampler * sampler) {
    return db_guard([&] {
        if (sampler == nullptr) return db_fail(DB_INVALID, "no sampler");
        common_sampler_free(sampler->chain);
        delete sampler;
        return (int32_t) DB_OK;
    });
}

DB_EXPORT int32_t db_sampler_reset(db_sampler * sampler) {
    return db_guard([&] {
        if (sampler == nullptr) return db_fail(DB_INVALID, "no sampler");
        common_sampler_reset(sampler->chain);
        return (int32_t) DB_OK;
    });
}
