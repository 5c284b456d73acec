// Proves one CPU backend library on this machine: real matrix work on every weight type and buffer type it offers, compared
// with plain arithmetic. Runs in a throw-away process, because a wrong backend dies by an illegal instruction or an abort.
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// Columns a multiple of every block size (256) and rows of every tile size (32), as real models have; less would skip the fast paths.
constexpr int64_t COLUMNS = 512;
constexpr int64_t ROWS = 128;
constexpr int64_t REFERENCE_COLUMNS_MAX = 8;
// Activations are rounded to 8 bits on the way: about 1e-5 is normal, a wrong kernel is near 1.
constexpr double ERROR_MAX = 2e-4;
constexpr int THREADS = 2;

const ggml_type WEIGHT_TYPES[] = {GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_Q8_0,
                                  GGML_TYPE_Q4_0, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K};

struct Deleter {
    void operator()(ggml_context * context) const { ggml_free(context); }
    void operator()(ggml_backend_buffer * buffer) const { ggml_backend_buffer_free(buffer); }
    void operator()(ggml_backend * backend) const { ggml_backend_free(backend); }
};
using Context = std::unique_ptr<ggml_context, Deleter>;
using Buffer = std::unique_ptr<ggml_backend_buffer, Deleter>;
using Backend = std::unique_ptr<ggml_backend, Deleter>;

[[noreturn]] void fail(const std::string & what) { throw std::runtime_error(what); }

Context new_context() {
    const ggml_init_params params = {ggml_tensor_overhead() * 32 + ggml_graph_overhead(), nullptr, true};
    ggml_context * context = ggml_init(params);
    if (context == nullptr) fail("no memory for a context");
    return Context(context);
}

Buffer allocate(ggml_context * context, ggml_backend_buffer_type_t type) {
    ggml_backend_buffer * buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, type);
    if (buffer == nullptr) fail("no memory for a buffer");
    return Buffer(buffer);
}

// Fixed pseudo-random values in [-1, 1): the same on every machine.
std::vector<float> values(size_t count, uint32_t seed) {
    std::vector<float> result(count);
    for (float & value : result) {
        seed = seed * 1664525u + 1013904223u;
        value = static_cast<float>(seed >> 8) / 8388608.0f - 1.0f;
    }
    return result;
}

void compute(ggml_backend * backend, ggml_context * context, std::initializer_list<ggml_tensor *> results) {
    ggml_cgraph * graph = ggml_new_graph(context);
    for (ggml_tensor * result : results) ggml_build_forward_expand(graph, result);
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) fail("the backend refused to compute");
}

std::vector<float> read(ggml_tensor * tensor) {
    std::vector<float> result(static_cast<size_t>(ggml_nelements(tensor)));
    ggml_backend_tensor_get(tensor, result.data(), 0, ggml_nbytes(tensor));
    for (const float value : result)
        if (!std::isfinite(value)) fail("a result is not finite");
    return result;
}

// The same question llama.cpp's loader asks before it puts a weight into a special buffer type.
bool supports(ggml_backend_dev_t device, ggml_backend_buffer_type_t type, ggml_tensor * weight, ggml_tensor * product) {
    const Buffer probe(ggml_backend_buft_alloc_buffer(type, 0));
    weight->buffer = probe.get();
    const bool supported = ggml_backend_dev_supports_op(device, product);
    weight->buffer = nullptr;
    return supported;
}

void check_product(const std::vector<float> & weight, const std::vector<float> & input, const std::vector<float> & output,
                   int64_t batch) {
    double error = 0;
    double power = 0;
    const int64_t stride = batch <= REFERENCE_COLUMNS_MAX ? 1 : (batch - 1) / (REFERENCE_COLUMNS_MAX - 1);
    for (int64_t column = 0; column < batch; column += stride) {
        for (int64_t row = 0; row < ROWS; row++) {
            double expected = 0;
            for (int64_t i = 0; i < COLUMNS; i++)
                expected += static_cast<double>(weight[row * COLUMNS + i]) * input[column * COLUMNS + i];
            const double difference = output[column * ROWS + row] - expected;
            error += difference * difference;
            power += expected * expected;
        }
    }
    if (!(error / power < ERROR_MAX)) fail("a product is wrong, relative error " + std::to_string(error / power));
}

void check_matrix(ggml_backend * backend, ggml_backend_buffer_type_t type, ggml_type weight_type, int64_t batch) {
    ggml_backend_dev_t device = ggml_backend_get_device(backend);
    const Context weights = new_context();
    const Context work = new_context();
    ggml_tensor * weight = ggml_new_tensor_2d(weights.get(), weight_type, COLUMNS, ROWS);
    ggml_tensor * input = ggml_new_tensor_2d(work.get(), GGML_TYPE_F32, COLUMNS, batch);
    ggml_tensor * product = ggml_mul_mat(work.get(), weight, input);
    if (!supports(device, type, weight, product)) return;
    const Buffer weight_buffer = allocate(weights.get(), type);
    ggml_backend_buffer_set_usage(weight_buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    const Buffer work_buffer = allocate(work.get(), ggml_backend_get_default_buffer_type(backend));

    std::vector<float> plain = values(COLUMNS * ROWS, 1);
    std::vector<uint8_t> packed(ggml_nbytes(weight));
    ggml_quantize_chunk(weight_type, plain.data(), packed.data(), 0, ROWS, COLUMNS, nullptr);
    ggml_backend_tensor_set(weight, packed.data(), 0, packed.size());
    // What the packed weights mean, so that only the product is judged, not the packing.
    const ggml_type_traits * traits = ggml_get_type_traits(weight_type);
    if (traits->to_float != nullptr) traits->to_float(packed.data(), plain.data(), COLUMNS * ROWS);
    const std::vector<float> activations = values(static_cast<size_t>(COLUMNS * batch), 2);
    ggml_backend_tensor_set(input, activations.data(), 0, ggml_nbytes(input));
    compute(backend, work.get(), {product});
    check_product(plain, activations, read(product), batch);
}

// Normalisation, rotation, attention: code that is compiled per micro-architecture too.
void check_attention(ggml_backend * backend, int64_t batch) {
    constexpr int64_t HEAD = 64;
    constexpr int64_t HEADS = 4;
    constexpr int64_t KEYS = 256;
    const Context work = new_context();
    ggml_tensor * query = ggml_new_tensor_3d(work.get(), GGML_TYPE_F32, HEAD, HEADS, batch);
    ggml_tensor * key = ggml_new_tensor_3d(work.get(), GGML_TYPE_F16, HEAD, KEYS, HEADS);
    ggml_tensor * value = ggml_new_tensor_3d(work.get(), GGML_TYPE_F16, HEAD, KEYS, HEADS);
    ggml_tensor * position = ggml_new_tensor_1d(work.get(), GGML_TYPE_I32, batch);
    ggml_tensor * rotated = ggml_rope(work.get(), ggml_rms_norm(work.get(), query, 1e-5f), position, HEAD, 0);
    ggml_tensor * turned = ggml_permute(work.get(), ggml_silu(work.get(), rotated), 0, 2, 1, 3);
    ggml_tensor * flash = ggml_flash_attn_ext(work.get(), turned, key, value, nullptr, 0.125f, 0.0f, 0.0f);
    ggml_tensor * scores = ggml_soft_max(work.get(), ggml_mul_mat(work.get(), key, turned));
    const Buffer buffer = allocate(work.get(), ggml_backend_get_default_buffer_type(backend));
    const std::vector<float> queries = values(static_cast<size_t>(ggml_nelements(query)), 3);
    std::vector<ggml_fp16_t> keys(static_cast<size_t>(ggml_nelements(key)));
    ggml_fp32_to_fp16_row(values(keys.size(), 4).data(), keys.data(), static_cast<int64_t>(keys.size()));
    std::vector<int32_t> positions(static_cast<size_t>(batch));
    for (size_t i = 0; i < positions.size(); i++) positions[i] = static_cast<int32_t>(i);
    ggml_backend_tensor_set(query, queries.data(), 0, ggml_nbytes(query));
    ggml_backend_tensor_set(key, keys.data(), 0, ggml_nbytes(key));
    ggml_backend_tensor_set(value, keys.data(), 0, ggml_nbytes(value));
    ggml_backend_tensor_set(position, positions.data(), 0, ggml_nbytes(position));
    compute(backend, work.get(), {flash, scores});
    read(flash);
    read(scores);
}

Backend open_backend(const char * path) {
    ggml_backend_reg_t registry = ggml_backend_load(path);
    if (registry == nullptr) fail("the library does not load as a backend");
    if (ggml_backend_reg_dev_count(registry) == 0) fail("the backend has no device");
    Backend backend(ggml_backend_dev_init(ggml_backend_reg_dev_get(registry, 0), nullptr));
    if (backend == nullptr) fail("the device does not start");
    const auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_n_threads"));
    if (set_threads != nullptr) set_threads(backend.get(), THREADS);
    return backend;
}

std::vector<ggml_backend_buffer_type_t> buffer_types(ggml_backend * backend) {
    std::vector<ggml_backend_buffer_type_t> result = {ggml_backend_get_default_buffer_type(backend)};
    ggml_backend_dev_t device = ggml_backend_get_device(backend);
    const auto get_extra = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
    if (get_extra == nullptr) return result;
    for (ggml_backend_buffer_type_t * extra = get_extra(device); extra != nullptr && *extra != nullptr; extra++)
        result.push_back(*extra);
    return result;
}

} // namespace

// 0 = the backend at `path` computes rightly at every batch size of `batches`; 1 = it does not, and `message` says why.
extern "C" int32_t db_self_test_backend(const char * path, const int32_t * batches, int32_t batch_count, char * message,
                                        int32_t message_bytes) {
    try {
        const Backend backend = open_backend(path);
        for (int32_t i = 0; i < batch_count; i++) {
            for (ggml_backend_buffer_type_t type : buffer_types(backend.get()))
                for (const ggml_type weight_type : WEIGHT_TYPES) check_matrix(backend.get(), type, weight_type, batches[i]);
            check_attention(backend.get(), batches[i]);
        }
        return 0;
    } catch (const std::exception & error) {
        snprintf(message, static_cast<size_t>(message_bytes), "%s", error.what());
    } catch (...) {
        snprintf(message, static_cast<size_t>(message_bytes), "unknown error");
    }
    return 1;
}
