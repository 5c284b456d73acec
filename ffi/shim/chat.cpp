// Upstream's chat layer: the model's own template in, prompt and tool grammar out; the model's answer in, differences out.
//
// Nothing of what() of an exception is kept here: upstream's messages quote the request or the answer.
#include "internal.h"

#include "chat.h"
#include "common.h"
#include "json.h"

#include <algorithm>
#include <memory>

struct db_chat {
    common_chat_templates_ptr templates;
    const llama_vocab *       vocab;
};

struct db_parser {
    common_chat_parser_params params;
    std::string               text;
    common_chat_msg           message;
};

DB_EXPORT int32_t db_chat_open(db_model * model, db_chat ** out) {
    return db_guard([&] {
        if (model == nullptr) return db_fail(DB_INVALID, "no model");
        const db_log_scope scope;
        try {
            auto chat = std::make_unique<db_chat>();
            chat->templates = common_chat_templates_init(model->model, "", "", "");
            chat->vocab     = model->vocab;
            *out = chat.release();
            return (int32_t) DB_OK;
        } catch (const std::exception &) {
            return db_fail(DB_TEMPLATE, "the chat template of the model cannot be parsed");
        }
    });
}

DB_EXPORT int32_t db_chat_close(db_chat * chat) {
    return db_guard([&] {
        if (chat == nullptr) return db_fail(DB_INVALID, "no chat templates");
        delete chat;
        return (int32_t) DB_OK;
    });
}

DB_EXPORT int32_t db_chat_capabilities(const db_chat * chat, db_text * out) {
    return db_guard([&] {
        if (chat == nullptr) return db_fail(DB_INVALID, "no chat templates");
        common_json found = common_json::object();
        for (const auto & entry : common_chat_templates_get_caps(chat->templates.get())) found[entry.first] = entry.second;
        return db_copy_text(found.dump_safe(), out);
    });
}

// ---- apply

static common_chat_templates_inputs read_inputs(const db_chat * chat, const common_json & request) {
    common_chat_templates_inputs inputs;
    inputs.messages              = common_chat_msgs_parse_oaicompat(request.at("messages"));
    inputs.add_generation_prompt = request.at("addGenerationPrompt").get<bool>();
    inputs.reasoning_format      = COMMON_REASONING_FORMAT_DEEPSEEK; // llama-server's default: thinking leaves as reasoning, streamed too
    if (request.contains("tools")) {
        inputs.tools       = common_chat_tools_parse_oaicompat(request.at("tools"));
        inputs.tool_choice = common_chat_tool_choice_parse_oaicompat(request.at("toolChoice").get<std::string>());
        auto capabilities  = common_chat_templates_get_caps(chat->templates.get());
        inputs.parallel_tool_calls = capabilities["supports_parallel_tool_calls"];
    }
    return inputs;
}

static common_json preserved_ids(const llama_vocab * vocab, const std::vector<std::string> & texts) {
    common_json ids = common_json::array();
    for (const std::string & text : texts) {
        const std::vector<llama_token> tokens = common_tokenize(vocab, text, false, true);
        if (tokens.size() == 1) ids.push_back((int) tokens[0]);
    }
    return ids;
}

// A trigger word that is one token is matched as that token, as upstream's server does.
static common_json trigger_list(const llama_vocab * vocab, const common_chat_params & params) {
    common_json triggers = common_json::array();
    for (const common_grammar_trigger & trigger : params.grammar_triggers) {
        int type = (int) trigger.type;
        llama_token token = trigger.token;
        if (trigger.type == COMMON_GRAMMAR_TRIGGER_TYPE_WORD) {
            const std::vector<llama_token> tokens = common_tokenize(vocab, trigger.value, false, true);
            const bool preserved = std::find(params.preserved_tokens.begin(), params.preserved_tokens.end(), trigger.value) != params.preserved_tokens.end();
            if (tokens.size() == 1 && preserved) {
                type  = (int) COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN;
                token = tokens[0];
            }
        }
        triggers.push_back({{"type", type}, {"value", trigger.value}, {"token", (int) token}});
    }
    return triggers;
}

static common_json describe(const db_chat * chat, const common_chat_params & params, bool with_tools) {
    common_json result = common_json::object();
    result["prompt"]          = params.prompt;
    result["additionalStops"] = params.additional_stops;
    result["preservedTokens"] = preserved_ids(chat->vocab, params.preserved_tokens);
    result["parser"] = common_json::object({
        {"format", (int) params.format},
        {"generationPrompt", params.generation_prompt},
        {"toolCalls", with_tools},
        {"arena", params.parser},
    });
    if (!params.grammar.empty()) {
        common_json grammar = common_json::object();
        grammar["text"]             = params.grammar;
        grammar["lazy"]             = params.grammar_lazy;
        grammar["generationPrompt"] = params.generation_prompt;
        grammar["triggers"]         = trigger_list(chat->vocab, params);
        grammar["preservedTokens"]  = preserved_ids(chat->vocab, params.preserved_tokens);
        grammar["thinkingStart"]    = params.thinking_start_tag;
        grammar["thinkingEnds"]     = params.thinking_end_tags;
        result["grammar"]           = grammar;
    }
    return result;
}

static bool try_apply(const db_chat * chat, const common_chat_templates_inputs & inputs, common_chat_params & params) {
    try {
        params = common_chat_templates_apply(chat->templates.get(), inputs);
        return true;
    } catch (const std::exception &) {
        return false;
    }
}

DB_EXPORT int32_t db_chat_apply(db_chat * chat, const char * request, int32_t size, db_text * out) {
    return db_guard([&] {
        if (chat == nullptr || size < 0) return db_fail(DB_INVALID, "no chat request");
        common_chat_templates_inputs inputs;
        try {
            inputs = read_inputs(chat, common_json::parse(std::string(request, (size_t) size)));
        } catch (const std::exception &) {
            return db_fail(DB_BAD_INPUT, "messages or tools have a shape the chat layer does not take");
        }
        const bool with_tools = !inputs.tools.empty() && inputs.tool_choice != COMMON_CHAT_TOOL_CHOICE_NONE;
        const db_quiet_stderr quiet;
        common_chat_params params;
        if (try_apply(chat, inputs, params)) return db_copy_text(describe(chat, params, with_tools).dump_safe(), out);
        // Without tool calls no grammar is made: if that works, the tools' schemas are at fault and not the template.
        inputs.tool_choice = COMMON_CHAT_TOOL_CHOICE_NONE;
        if (with_tools && try_apply(chat, inputs, params)) return db_fail(DB_GRAMMAR, "the tools' schemas cannot be turned into a grammar");
        return db_fail(DB_TEMPLATE, "the chat template could not render this request");
    });
}

// ---- parse

DB_EXPORT int32_t db_parser_open(const char * spec, int32_t size, db_parser ** out) {
    return db_guard([&] {
        const common_json json = common_json::parse(std::string(spec, (size_t) size));
        auto parser = std::make_unique<db_parser>();
        parser->params.format            = (common_chat_format) json.at("format").get<int>();
        parser->params.generation_prompt = json.at("generationPrompt").get<std::string>();
        parser->params.parse_tool_calls  = json.at("toolCalls").get<bool>();
        parser->params.reasoning_format  = COMMON_REASONING_FORMAT_DEEPSEEK;
        const std::string arena = json.at("arena").get<std::string>();
        if (!arena.empty()) parser->params.parser.load(arena);
        *out = parser.release();
        return (int32_t) DB_OK;
    });
}

DB_EXPORT int32_t db_parser_close(db_parser * parser) {
    return db_guard([&] {
        if (parser == nullptr) return db_fail(DB_INVALID, "no parser");
        delete parser;
        return (int32_t) DB_OK;
    });
}

static bool try_parse(const db_parser * parser, bool is_partial, common_chat_msg & message) {
    try {
        message = common_chat_parse(parser->text, is_partial, parser->params);
        return true;
    } catch (const std::exception &) {
        return false;
    }
}

// What the text so far means. An unfinished answer that cannot be read yet means what it meant before. A finished one that breaks
// its format is read as far as it goes if that holds a call or reasoning (it was cut off in the middle of one); else it is text.
static bool read_message(const db_parser * parser, bool is_final, common_chat_msg & message) {
    if (try_parse(parser, !is_final, message)) return true;
    const common_chat_msg & sent = parser->message;
    if (!is_final) {
        message = sent;
        return true;
    }
    if (try_parse(parser, true, message) && !(message.tool_calls.empty() && message.reasoning_content.empty())) return true;
    const bool only_text = sent.tool_calls.empty() && sent.reasoning_content.empty() && parser->text.compare(0, sent.content.size(), sent.content) == 0;
    message = sent;
    if (only_text) message.content = parser->text;
    return only_text;
}

static common_json list_differences(const std::vector<common_chat_msg_diff> & differences) {
    common_json list = common_json::array();
    for (const common_chat_msg_diff & difference : differences) {
        if (!difference.reasoning_content_delta.empty()) list.push_back({{"reasoning", difference.reasoning_content_delta}});
        if (!difference.content_delta.empty()) list.push_back({{"text", difference.content_delta}});
        if (difference.tool_call_index == std::string::npos) continue;
        const common_chat_tool_call & call = difference.tool_call_delta;
        list.push_back({{"index", (int) difference.tool_call_index}, {"id", call.id}, {"name", call.name}, {"arguments", call.arguments}});
    }
    return list;
}

DB_EXPORT int32_t db_parser_push(db_parser * parser, const char * text, int32_t size, int32_t final, db_text * out) {
    return db_guard([&] {
        if (parser == nullptr || size < 0) return db_fail(DB_INVALID, "no parser");
        *out = {nullptr, 0};
        parser->text.append(text, (size_t) size);
        common_chat_msg message;
        if (!read_message(parser, final != 0, message)) return db_fail(DB_PARSE, "the answer does not follow the model's own format");
        if (message.empty()) return (int32_t) DB_OK;
        std::vector<common_chat_msg_diff> differences;
        try {
            differences = common_chat_msg_diff::compute_diffs(parser->message, message);
        } catch (const std::exception &) {
            // A partial reading that contradicts an earlier one: wait for more text.
            return final != 0 ? db_fail(DB_PARSE, "the answer does not follow the model's own format") : (int32_t) DB_OK;
        }
        parser->message = std::move(message);
        if (differences.empty()) return (int32_t) DB_OK;
        return db_copy_text(list_differences(differences).dump_safe(), out);
    });
}
