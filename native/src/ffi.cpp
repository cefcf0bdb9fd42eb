// The doors to XLA: one handler for batches made here, one for batches that come as pairs or tokens, one for embedded
// layers, two for tests, one that tells how many threads there are. And, for a plain call: which instruction set is
// used.
#include "xla/ffi/api/ffi.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "batch.h"
#include "dispatch.h"
#include "embedded.h"

namespace innerloop {

// Attributes that both kinds of batches have. `attention` has one digit per layer, see Attention; `layout` is a Layout,
// `content_size` and `is_permuted` are of alternating tokens; `loss` is a Loss; `first_norm` is the first layer with
// LayerNorm before its attention; `has_norms` and `has_mlps` say what weights there must be. `instruction_set` is
// "best" but in tests; `num_threads` 0 means all.
struct Options {
  std::string_view attention;
  int32_t layout, content_size, is_permuted, loss, query_in_keys, writes_targets_only, is_causal, first_norm, has_norms,
      has_mlps, num_threads;
  float damping, token_clip, logit_scale;
  std::string_view instruction_set;
};

struct EmbeddedOptions {
  int32_t query_in_keys, num_threads;
  float token_clip;
  std::string_view instruction_set;
};

// What the names of a task's arrays are folded in as.
struct Names {
  uint32_t inputs, weights, noise;
};

}  // namespace innerloop

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(
    innerloop::Options, xla::ffi::StructMember<std::string_view>("attention"),
    xla::ffi::StructMember<int32_t>("layout"), xla::ffi::StructMember<int32_t>("content_size"),
    xla::ffi::StructMember<int32_t>("is_permuted"), xla::ffi::StructMember<int32_t>("loss"),
    xla::ffi::StructMember<int32_t>("query_in_keys"), xla::ffi::StructMember<int32_t>("writes_targets_only"),
    xla::ffi::StructMember<int32_t>("is_causal"), xla::ffi::StructMember<int32_t>("first_norm"),
    xla::ffi::StructMember<int32_t>("has_norms"), xla::ffi::StructMember<int32_t>("has_mlps"),
    xla::ffi::StructMember<int32_t>("num_threads"), xla::ffi::StructMember<float>("damping"),
    xla::ffi::StructMember<float>("token_clip"), xla::ffi::StructMember<float>("logit_scale"),
    xla::ffi::StructMember<std::string_view>("instruction_set"));
XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(innerloop::EmbeddedOptions, xla::ffi::StructMember<int32_t>("query_in_keys"),
                                      xla::ffi::StructMember<int32_t>("num_threads"),
                                      xla::ffi::StructMember<float>("token_clip"),
                                      xla::ffi::StructMember<std::string_view>("instruction_set"));
XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(innerloop::Names, xla::ffi::StructMember<uint32_t>("inputs"),
                                      xla::ffi::StructMember<uint32_t>("weights"),
                                      xla::ffi::StructMember<uint32_t>("noise"));

namespace innerloop {
namespace {

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Words = ffi::Buffer<ffi::U32>;
using Step = ffi::Buffer<ffi::S32>;
using FloatResult = ffi::ResultBuffer<ffi::F32>;
using WordResult = ffi::ResultBuffer<ffi::U32>;

// jax.random.fold_in of a threefry key: the block (0, data) under the key. One block, so portable scalar code will do.
Key fold_in(Key key, uint32_t data) {
  constexpr int ROTATIONS[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t schedule[3] = {key.high, key.low, key.high ^ key.low ^ 0x1BD11BDAu};
  uint32_t left = key.high, right = data + key.low;
  for (uint32_t group = 0; group < 5; ++group) {
    for (int rotation : ROTATIONS[group % 2]) {
      left += right;
      right = left ^ (right << rotation | right >> (32 - rotation));
    }
    left += schedule[(group + 1) % 3];
    right += schedule[(group + 2) % 3] + group + 1;
  }
  return {left, right};
}

Key read_key(const Words& words) { return {words.typed_data()[0], words.typed_data()[1]}; }

// The keys of a batch: the training stream folded with the step, then with the arrays' names.
void set_keys(Data& data, const Words& stream, const Step& step, const Names& names) {
  const Key key = fold_in(read_key(stream), static_cast<uint32_t>(step.typed_data()[0]));
  data.is_sampled = true;
  data.input_key = fold_in(key, names.inputs);
  data.weight_key = fold_in(key, names.weights);
  data.noise_key = fold_in(key, names.noise);
}

ffi::Error unknown_instruction_set(std::string_view name) {
  return ffi::Error::InvalidArgument("no native code for instruction set '" + std::string(name) + "' on this machine");
}

int threads_of(const ffi::ThreadPool& pool, int32_t num_threads) {
  return num_threads > 0 ? num_threads : static_cast<int>(pool.num_threads());
}

// The last arrays of a call are a stack's weights, and its last results their gradients, both in the order of
// StackArrays. Of parts that a stack lacks, arrays have no entries.
template <class Array, class Arrays>
std::vector<Array> floats_of(const Arrays& arrays) {
  std::vector<Array> floats;
  for (size_t i = 0; i < arrays.size(); ++i)
    if (const auto array = arrays.template get<Floats>(i); array.has_value()) floats.push_back(*array);
  return floats;
}

constexpr size_t NUM_STACK_ARRAYS = 9;

template <class Array, class Find>
auto named(std::vector<Array>& arrays, Find find) -> StackArrays<decltype(find(arrays[0]))> {
  return {find(arrays[0]), find(arrays[1]), find(arrays[2]), find(arrays[3]), find(arrays[4]),
          find(arrays[5]), find(arrays[6]), find(arrays[7]), find(arrays[8])};
}

// Whether weights fit each other and the parts that a stack has.
bool fits(const StackArrays<Floats>& weights, const Problem& problem, bool is_mixed, bool has_norms, bool has_mlps) {
  const size_t layers = problem.num_distinct_layers, size = problem.token_size, hidden = problem.hidden_size;
  const auto has = [](const Floats& array, size_t count) { return array.element_count() == count; };
  const size_t products = layers * problem.num_heads * size * size;
  const size_t norms = has_norms ? layers * size : 0, mlp_norms = has_mlps ? norms : 0;
  return (layers == 1 || problem.num_distinct_layers == problem.num_layers) && has(weights.W_KQ, products) &&
         has(weights.W_PV, products) && has(weights.shares, is_mixed ? layers : 0) && has(weights.norm_scale, norms) &&
         has(weights.norm_offset, norms) && has_mlps == (hidden > 0) &&
         has(weights.into_hidden, layers * (size + 1) * hidden) &&
         has(weights.out_of_hidden, hidden ? layers * (hidden + 1) * size : 0) &&
         has(weights.mlp_norm_scale, mlp_norms) && has(weights.mlp_norm_offset, mlp_norms);
}

ffi::Error run(ffi::ThreadPool& pool, const Options& options, const Floats& initial_weights, const Floats& codes,
               int num_pairs, int batch_size, Data data, const ffi::RemainingArgs& arrays, FloatResult& loss,
               const ffi::RemainingRets& results) {
  const BlockKernel* kernel = find_kernel(options.instruction_set);
  if (!kernel) return unknown_instruction_set(options.instruction_set);
  const auto layout = static_cast<Layout>(options.layout);
  std::vector<Attention> attention;
  for (char digit : options.attention) attention.push_back(static_cast<Attention>(digit - '0'));
  auto weight_list = floats_of<Floats>(arrays);
  auto gradient_list = floats_of<FloatResult>(results);
  if (weight_list.size() != NUM_STACK_ARRAYS || gradient_list.size() != NUM_STACK_ARRAYS)
    return ffi::Error::InvalidArgument("a stack has nine arrays of weights and as many gradients");
  const auto weights = named(weight_list, [](Floats& array) { return array; });
  const auto shape = weights.W_KQ.dimensions();  // distinct layers, heads, token size, token size
  Problem problem{};
  problem.num_layers = static_cast<int>(attention.size());
  problem.num_distinct_layers = static_cast<int>(shape[0]);
  problem.num_heads = static_cast<int>(shape[1]);
  problem.token_size = static_cast<int>(shape[2]);
  problem.output_size = static_cast<int>(initial_weights.dimensions()[0]);
  problem.input_size = static_cast<int>(initial_weights.dimensions()[1]);
  problem.num_pairs = num_pairs;
  problem.num_tokens = layout == Layout::alternating ? 2 * num_pairs - 1 : num_pairs;
  problem.num_keys = options.query_in_keys ? problem.num_tokens : problem.num_tokens - 1;
  problem.batch_size = batch_size;
  problem.token_clip = options.token_clip;
  problem.loss = static_cast<Loss>(options.loss);
  problem.initial_weights = initial_weights.typed_data();
  problem.attention = attention.data();
  problem.logit_scale = options.logit_scale;
  problem.is_causal = options.is_causal;
  problem.first_norm = options.first_norm;
  problem.hidden_size = static_cast<int>(weights.into_hidden.dimensions()[2]);
  data.layout = layout;
  data.codes = codes.typed_data();
  data.content_size = options.content_size;
  data.is_permuted = options.is_permuted;
  problem.data = data;
  const bool is_mixed = std::find(attention.begin(), attention.end(), Attention::mixed) != attention.end();
  const bool fits_tokens = layout != Layout::pairs || problem.input_size + problem.output_size == problem.token_size;
  const bool fits_codes = layout != Layout::alternating ||
                          codes.element_count() == static_cast<size_t>(problem.num_tokens) * problem.token_size;
  if (!fits_tokens || !fits_codes || !fits(weights, problem, is_mixed, options.has_norms, options.has_mlps))
    return ffi::Error::InvalidArgument("the shapes of the weights do not fit each other, the layers or the tokens");
  const auto pointer = [](Floats& array) -> const float* {
    return array.element_count() ? array.typed_data() : nullptr;
  };
  run_batch(
      *kernel, problem, named(weight_list, pointer), options.damping, options.writes_targets_only,
      threads_of(pool, options.num_threads), [&](std::function<void()> task) { pool.Schedule(std::move(task)); },
      loss->typed_data(), named(gradient_list, [](FloatResult& array) { return array->typed_data(); }));
  return ffi::Error::Success();
}

ffi::Error sampled_batch(ffi::ThreadPool pool, Options options, Names names, int32_t num_pairs, int32_t batch_size,
                         Floats initial_weights, Floats codes, Floats scales, Words stream, Step step,
                         ffi::RemainingArgs weights, FloatResult loss, ffi::RemainingRets gradients) {
  Data data{};
  set_keys(data, stream, step, names);
  data.input_scale = scales.typed_data()[0];
  data.target_scale = scales.typed_data()[1];
  data.noise_std = scales.typed_data()[2];
  return run(pool, options, initial_weights, codes, num_pairs, batch_size, data, weights, loss, gradients);
}

// Batches that come as pairs or as tokens.
ffi::Error given_batch(ffi::ThreadPool pool, Options options, Floats initial_weights, Floats codes, Floats inputs,
                       Floats targets, ffi::RemainingArgs weights, FloatResult loss, ffi::RemainingRets gradients) {
  Data data{};
  data.inputs = inputs.typed_data();
  data.targets = targets.typed_data();
  return run(pool, options, initial_weights, codes, static_cast<int>(inputs.dimensions()[1]),
             static_cast<int>(inputs.dimensions()[2]), data, weights, loss, gradients);
}

ffi::Error embedded_batch(ffi::ThreadPool pool, EmbeddedOptions options, Floats into_hidden, Floats embedding,
                          Floats queries, Floats values, Floats tokens, Floats answers, FloatResult loss,
                          FloatResult into_hidden_gradient, FloatResult embedding_gradient,
                          FloatResult queries_gradient, FloatResult values_gradient) {
  const BlockKernel* kernel = find_kernel(options.instruction_set);
  if (!kernel) return unknown_instruction_set(options.instruction_set);
  EmbeddedProblem problem{};
  problem.token_size = static_cast<int>(tokens.dimensions()[0]);
  problem.num_tokens = static_cast<int>(tokens.dimensions()[1]);
  problem.num_keys = options.query_in_keys ? problem.num_tokens : problem.num_tokens - 1;
  problem.batch_size = static_cast<int>(tokens.dimensions()[2]);
  problem.hidden_size = static_cast<int>(into_hidden.dimensions()[1]);
  problem.width = static_cast<int>(embedding.dimensions()[0]);
  problem.num_heads = static_cast<int>(values.dimensions()[0]);
  problem.output_size = static_cast<int>(values.dimensions()[1]);
  problem.token_clip = options.token_clip;
  problem.tokens = tokens.typed_data();
  problem.answers = answers.typed_data();
  if (embedding.dimensions()[1] != problem.hidden_size + problem.token_size + 1 || problem.width < problem.output_size)
    return ffi::Error::InvalidArgument("the shapes of the weights do not fit each other");
  run_embedded_batch(
      *kernel, problem, {into_hidden.typed_data(), embedding.typed_data(), queries.typed_data(), values.typed_data()},
      threads_of(pool, options.num_threads), [&](std::function<void()> task) { pool.Schedule(std::move(task)); },
      {loss->typed_data(), into_hidden_gradient->typed_data(), embedding_gradient->typed_data(),
       queries_gradient->typed_data(), values_gradient->typed_data()});
  return ffi::Error::Success();
}

ffi::Error words(std::string_view instruction_set, Words key, WordResult out) {
  const BlockKernel* kernel = find_kernel(instruction_set);
  if (!kernel) return unknown_instruction_set(instruction_set);
  kernel->words(read_key(key), static_cast<uint32_t>(out->element_count()), out->typed_data());
  return ffi::Error::Success();
}

ffi::Error draw(std::string_view instruction_set, Names names, Words stream, Step step, FloatResult inputs,
                FloatResult weights, FloatResult noise) {
  const BlockKernel* kernel = find_kernel(instruction_set);
  if (!kernel) return unknown_instruction_set(instruction_set);
  const auto shape = inputs->dimensions();  // input size, pairs, batch
  Problem problem{};
  problem.input_size = static_cast<int>(shape[0]);
  problem.num_pairs = static_cast<int>(shape[1]);
  problem.batch_size = static_cast<int>(shape[2]);
  problem.output_size = static_cast<int>(weights->dimensions()[0]);
  set_keys(problem.data, stream, step, names);
  kernel->draw(problem, inputs->typed_data(), weights->typed_data(), noise->typed_data());
  return ffi::Error::Success();
}

// How many threads XLA lends.
ffi::Error threads(ffi::ThreadPool pool, ffi::ResultBuffer<ffi::S32> out) {
  out->typed_data()[0] = static_cast<int32_t>(pool.num_threads());
  return ffi::Error::Success();
}

auto sampled_batch_binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<Options>("options")
      .Attr<Names>("names")
      .Attr<int32_t>("num_pairs")
      .Attr<int32_t>("batch_size")
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Words>()
      .Arg<Step>()
      .RemainingArgs()
      .Ret<Floats>()
      .RemainingRets();
}

auto given_batch_binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<Options>("options")
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .RemainingArgs()
      .Ret<Floats>()
      .RemainingRets();
}

auto embedded_batch_binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<EmbeddedOptions>("options")
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Ret<Floats>()
      .Ret<Floats>()
      .Ret<Floats>()
      .Ret<Floats>()
      .Ret<Floats>();
}

auto words_binding() { return ffi::Ffi::Bind().Attr<std::string_view>("instruction_set").Arg<Words>().Ret<Words>(); }

auto draw_binding() {
  return ffi::Ffi::Bind()
      .Attr<std::string_view>("instruction_set")
      .Attr<Names>("names")
      .Arg<Words>()
      .Arg<Step>()
      .Ret<Floats>()
      .Ret<Floats>()
      .Ret<Floats>();
}

auto threads_binding() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Ret<ffi::Buffer<ffi::S32>>(); }

}  // namespace

// What Python loads by name (innerloop/kernels/native.py).
#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(innerloop_sampled_batch, sampled_batch, sampled_batch_binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(innerloop_given_batch, given_batch, given_batch_binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(innerloop_embedded_batch, embedded_batch, embedded_batch_binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(innerloop_words, words, words_binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(innerloop_draw, draw, draw_binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(innerloop_threads, threads, threads_binding());
// The name of what "best" is on this machine.
extern "C" const char* innerloop_instruction_set() { return find_kernel("best")->name; }
#pragma GCC visibility pop

}  // namespace innerloop
