// Loss and gradient of a range of blocks. This file is compiled once per instruction set.
#include "attention_form.h"
#include "embedded_layer.h"
#include "gram_form.h"
#include "token_form.h"

namespace innerloop::INNERLOOP_TARGET {
namespace {

template <class Form>
size_t form_bytes(const Problem& problem) {
  Arena arena(nullptr);
  Layers layers(problem, arena);
  Form form(problem, layers, arena);
  return arena.used_bytes();
}

template <class Form>
void run_form(const Problem& problem, int first, int last, void* scratch, float* sums) {
  Arena arena(scratch);
  Layers layers(problem, arena);
  Form form(problem, layers, arena);
  layers.clear();
  for (int block = first; block < last; ++block) form.run(block);
  layers.write_sums(sums);
}

// Whether all attention is linear and reads all keys as they are.
bool is_linear(const Problem& problem) {
  for (int layer = 0; layer < problem.num_layers; ++layer)
    if (problem.attention[layer] != Attention::linear || problem.first_norm <= layer) return false;
  return !problem.is_causal;
}

bool moves_tokens(const Problem& problem) {
  return problem.num_layers == 1 || problem.token_clip < __builtin_inff() || problem.hidden_size > 0;
}

// Code for one token size. The one that is used most, ten inputs and one output, is known when compiling.
struct Form {
  size_t (*bytes)(const Problem&);
  void (*run)(const Problem&, int, int, void*, float*);
};

template <int SIZE>
Form form_of_size(const Problem& problem) {
  if (!is_linear(problem)) return {form_bytes<AttentionForm<SIZE>>, run_form<AttentionForm<SIZE>>};
  if (moves_tokens(problem)) return {form_bytes<TokenForm<SIZE>>, run_form<TokenForm<SIZE>>};
  return {form_bytes<GramForm<SIZE>>, run_form<GramForm<SIZE>>};
}

Form find_form(const Problem& problem) {
#if defined(INNERLOOP_KNOWN_SIZE)
  if (problem.token_size == INNERLOOP_KNOWN_SIZE) return form_of_size<INNERLOOP_KNOWN_SIZE>(problem);
#endif
  return form_of_size<0>(problem);
}

size_t scratch_bytes(const Problem& problem) { return find_form(problem).bytes(problem); }

void run_blocks(const Problem& problem, int first, int last, void* scratch, float* sums) {
  find_form(problem).run(problem, first, last, scratch, sums);
}

template <class Layer>
size_t embedded_bytes(const EmbeddedProblem& problem) {
  Arena arena(nullptr);
  Layer layer(problem, nullptr, arena);
  return arena.used_bytes();
}

template <class Layer>
void run_layer(const EmbeddedProblem& problem, int first, int last, void* scratch, float* sums) {
  Arena arena(scratch);
  Layer(problem, sums, arena).run(first, last);
}

// The sizes of the paper's sine waves, tokens (x, y) and one head, are known when compiling.
bool has_known_sizes(const EmbeddedProblem& problem) {
#if defined(INNERLOOP_KNOWN_SIZE)
  return problem.token_size == 2 && problem.num_heads == 1 && problem.output_size == 1;
#else
  return problem.token_size < 0;
#endif
}

size_t embedded_scratch_bytes(const EmbeddedProblem& problem) {
  return has_known_sizes(problem) ? embedded_bytes<EmbeddedLayer<2, 2>>(problem)
                                  : embedded_bytes<EmbeddedLayer<0, 0>>(problem);
}

void run_embedded(const EmbeddedProblem& problem, int first, int last, void* scratch, float* sums) {
  if (has_known_sizes(problem))
    run_layer<EmbeddedLayer<2, 2>>(problem, first, last, scratch, sums);
  else
    run_layer<EmbeddedLayer<0, 0>>(problem, first, last, scratch, sums);
}

// Writes use(words) for a whole stream, laid out as the Python code's arrays are.
template <class T, class Use>
void write_stream(const Stream& stream, T* out, Use use) {
  for (int task = 0; task < stream.batch_size; task += LANES) {
    const int count = stream.batch_size - task < LANES ? stream.batch_size - task : LANES;
    visit(stream, 0, stream.columns, task, [&](int row, int column, Words words) {
      store(use(words), out + (size_t(row) * stream.columns + column) * stream.batch_size + task, count);
    });
  }
}

void words(Key key, uint32_t count, uint32_t* out) {
  write_stream({key, 1, 1, int(count)}, out, [](Words words) { return words; });
}

void draw(const Problem& problem, float* inputs, float* weights, float* noise) {
  write_stream(input_stream(problem), inputs, [](Words words) { return centred_uniform(words); });
  write_stream(weight_stream(problem), weights, [](Words words) { return normal(words); });
  write_stream(noise_stream(problem), noise, [](Words words) { return normal(words); });
}

#define INNERLOOP_STRING_OF(text) #text
#define INNERLOOP_STRING(macro) INNERLOOP_STRING_OF(macro)

}  // namespace

extern const BlockKernel kernel;
const BlockKernel kernel = {INNERLOOP_STRING(INNERLOOP_TARGET),
                            LANES,
                            scratch_bytes,
                            run_blocks,
                            embedded_scratch_bytes,
                            run_embedded,
                            words,
                            draw};

}  // namespace innerloop::INNERLOOP_TARGET
