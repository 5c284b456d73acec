// Libraries, devices and the log: everything that is one per process or per thread rather than per model.
#include "internal.h"

#include "json.h"
#include "log.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <set>

static thread_local std::string last_error;

void db_set_error(const char * text) { last_error = text; }

int32_t db_fail(int32_t status, const char * text) {
    last_error = text;
    return status;
}

int32_t db_copy_text(const std::string & text, db_text * out) {
    out->data = (char *) malloc(text.size() + 1);
    if (out->data == nullptr) return db_fail(DB_OUT_OF_MEMORY, "out of memory");
    memcpy(out->data, text.c_str(), text.size() + 1);
    out->size = text.size();
    return DB_OK;
}

// ---- log

static constexpr size_t LOG_LINES_MAX = 64;
static constexpr size_t LOG_CHARS_MAX = 200;

static std::mutex              log_mutex;
static std::deque<std::string> log_lines;
static thread_local int        log_depth = 0;
static thread_local std::string log_first_error;

static std::string tidy_line(const char * text) {
    std::string line(text, strnlen(text, LOG_CHARS_MAX));
    while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) line.pop_back();
    for (char & c : line) {
        // The words can come from a model file: nothing that could steer a terminal.
        if ((unsigned char) c < 0x20 || (unsigned char) c >= 0x7f) c = '?';
    }
    return line;
}

static void keep_log(ggml_log_level level, const char * text, void *) {
    if (log_depth == 0 || text == nullptr) return;
    if (level != GGML_LOG_LEVEL_WARN && level != GGML_LOG_LEVEL_ERROR) return;
    std::string line = tidy_line(text);
    if (line.empty()) return;
    // The first error is the cause; the ones after it only say that loading failed.
    if (level == GGML_LOG_LEVEL_ERROR && log_first_error.empty()) log_first_error = line;
    const std::lock_guard<std::mutex> lock(log_mutex);
    if (log_lines.size() == LOG_LINES_MAX) log_lines.pop_front();
    log_lines.push_back(std::move(line));
}

db_log_scope::db_log_scope() {
    if (log_depth++ == 0) log_first_error.clear();
}
db_log_scope::~db_log_scope() { log_depth--; }

std::string db_load_error(const char * otherwise) { return log_first_error.empty() ? otherwise : log_first_error; }

static std::mutex quiet_mutex;
static int        quiet_depth = 0;
static FILE *     loud_stderr = nullptr;

db_quiet_stderr::db_quiet_stderr() {
    const std::lock_guard<std::mutex> lock(quiet_mutex);
    static FILE * const nowhere = fopen("/dev/null", "w");
    if (quiet_depth++ > 0 || nowhere == nullptr) return;
    loud_stderr = stderr;
    stderr      = nowhere;
}

db_quiet_stderr::~db_quiet_stderr() {
    const std::lock_guard<std::mutex> lock(quiet_mutex);
    if (--quiet_depth > 0 || loud_stderr == nullptr) return;
    stderr      = loud_stderr;
    loud_stderr = nullptr;
}

DB_EXPORT int32_t db_log_drain(db_text * out) {
    return db_guard([&] {
        std::string text;
        {
            const std::lock_guard<std::mutex> lock(log_mutex);
            for (const std::string & line : log_lines) text += line + "\n";
            log_lines.clear();
        }
        return db_copy_text(text, out);
    });
}

// ---- version, text

DB_EXPORT int32_t      db_abi_version(void) { return DB_ABI_VERSION; }
DB_EXPORT const char * db_last_error(void) { return last_error.c_str(); }
DB_EXPORT const char * db_llama_version(void) { return llama_version(); }
DB_EXPORT int32_t      db_string_free(char * data) {
    free(data);
    return DB_OK;
}

// ---- backends

// Workers of one process share these libraries, and loading a backend twice would register its devices twice.
static std::mutex            backend_mutex;
static std::set<std::string> backends_loaded;

DB_EXPORT int32_t db_backend_load(const char * path) {
    return db_guard([&] {
        const std::lock_guard<std::mutex> lock(backend_mutex);
        if (backends_loaded.count(path)) return (int32_t) DB_OK;
        llama_log_set(keep_log, nullptr);
        const db_log_scope scope;
        if (ggml_backend_load(path) == nullptr) return db_fail(DB_LOAD, db_load_error("the backend library could not be loaded").c_str());
        backends_loaded.insert(path);
        return (int32_t) DB_OK;
    });
}

DB_EXPORT int32_t db_backend_load_all(const char * dir) {
    return db_guard([&] {
        const std::lock_guard<std::mutex> lock(backend_mutex);
        if (backends_loaded.count(dir)) return (int32_t) DB_OK;
        llama_log_set(keep_log, nullptr);
        const db_log_scope scope;
        ggml_backend_load_all_from_path(dir);
        backends_loaded.insert(dir);
        return (int32_t) DB_OK;
    });
}

DB_EXPORT int32_t db_backend_init(void) {
    return db_guard([] {
        const std::lock_guard<std::mutex> lock(backend_mutex);
        llama_log_set(keep_log, nullptr);
        // The chat layer has a logger of its own, which writes model output to stderr when a parse fails.
        common_log_set_verbosity_thold(-1);
        llama_backend_init();
        if (ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) == nullptr) return db_fail(DB_LOAD, "no CPU backend is loaded");
        return (int32_t) DB_OK;
    });
}

static const char * device_type_name(enum ggml_backend_dev_type type) {
    switch (type) {
        case GGML_BACKEND_DEVICE_TYPE_CPU:  return "cpu";
        case GGML_BACKEND_DEVICE_TYPE_GPU:  return "gpu";
        case GGML_BACKEND_DEVICE_TYPE_IGPU: return "igpu";
        default:                            return "accelerator";
    }
}

DB_EXPORT int32_t db_devices(db_text * out) {
    return db_guard([&] {
        common_json devices = common_json::array();
        for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
            ggml_backend_dev_t device = ggml_backend_dev_get(i);
            size_t free_bytes = 0, total_bytes = 0;
            ggml_backend_dev_memory(device, &free_bytes, &total_bytes);
            devices.push_back({
                {"name", std::string(ggml_backend_dev_name(device))},
                {"description", std::string(ggml_backend_dev_description(device))},
                {"type", std::string(device_type_name(ggml_backend_dev_type(device)))},
                {"freeBytes", (uint64_t) free_bytes},
                {"totalBytes", (uint64_t) total_bytes},
            });
        }
        return db_copy_text(devices.dump_safe(), out);
    });
}
