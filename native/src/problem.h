// What one call has to compute. Plain data without inline functions: this header is shared by files that are compiled
// for different instruction sets, and the linker may keep any one copy of an inline function.
#pragma once

#include <cstddef>
#include <cstdint>

namespace innerloop {

// Two words that name a stream of random numbers.
struct Key {
  uint32_t high, low;
};

// How a task's pairs (x_j, y_j), the query's last, become tokens.
enum class Layout : int32_t {
  pairs,        // a token per pair; the query's is (x_q, -W0 x_q)
  alternating,  // x_1, y_1, x_2, .., y_N, x_q, each plus the code of its position
  given,        // tokens that the caller made
};

// Where a batch comes from: arrays that the caller made, or keys from which the kernel makes linear regression tasks.
// All arrays but the codes have the tasks along the last axis.
struct Data {
  Layout layout;
  bool is_sampled;
  // Given batches. Where tokens are given, they take the inputs' place, [token_size, num_tokens, batch_size], and the
  // targets are the query's alone, [output_size, 1, batch_size].
  const float* inputs;   // [input_size, num_pairs, batch_size], the query last
  const float* targets;  // [output_size, num_pairs, batch_size], the query's noiseless target last
  // Sampled batches: x ~ input_scale U(-1/2, 1/2), W ~ target_scale N(0, 1), noise ~ noise_std N(0, 1).
  Key input_key, weight_key, noise_key;
  float input_scale, target_scale, noise_std;
  // Of alternating tokens: x stands at a token's start, y ends at its first content_size entries; the codes are laid
  // out as the tokens are, with zeros where a token holds no code.
  int content_size;
  const float* codes;  // [num_tokens, token_size]
  bool is_permuted;    // the context's codes are shuffled in every task
};

// What makes attention of the scores: nothing, softmax, or share * softmax + (1 - share) * nothing.
enum class Attention : int32_t { linear, softmax, mixed };

// What a wrong prediction of the query's target costs.
enum class Loss : int32_t { half_squared_error, cross_entropy };

// A stack of attention in row form: every token e (a row) moves by
//
//     e <- clip(e + sum over heads and keys k of attention(r A k^T) k C),
//
// r and k being the token and the keys as the layer reads them (as they are, or after LayerNorm), with A = W_KQ^T and
// C = damping * W_PV^T, whose columns that no layer may write are zero. Where all attention is linear and reads tokens
// as they are, this is e <- clip(e + sum over heads of e A S C) with S = sum over keys of e^T e. In blocks with an MLP
//
//     e <- clip(e + [gelu([r, 1] W), 1] V)
//
// follows, with weights W into the hidden units and V out of them, the last row of each the biases; V holds the
// damping, and zeros in columns that no layer may write.
struct Problem {
  int num_layers;
  int num_distinct_layers;  // 1 when tied
  int num_heads;
  int input_size, output_size, token_size;
  int num_pairs;   // the context's and, last, the query
  int num_tokens;  // the context's and, last, the query
  int num_keys;    // num_tokens, or one less without the query
  int batch_size;
  float token_clip;  // infinite for none
  Loss loss;
  const float* A;  // [num_distinct_layers, num_heads, token_size, token_size]
  const float* C;
  const float* initial_weights;           // W0 [output_size, input_size]
  const Attention* attention;             // [num_layers]
  const float* shares;                    // of softmax in mixed attention [num_distinct_layers]; null without it
  float logit_scale;                      // factor on scores before softmax
  bool is_causal;                         // a token attends to itself and to tokens before it only
  int first_norm;                         // LayerNorm comes before the attention of this layer and of all above it
  const float *norm_scale, *norm_offset;  // [num_distinct_layers, token_size]; null without LayerNorm
  int hidden_size;                        // of blocks' MLPs; 0 without them
  const float* into_hidden;               // W [num_distinct_layers, token_size + 1, hidden_size]
  const float* out_of_hidden;             // V [num_distinct_layers, hidden_size + 1, token_size]
  const float *mlp_norm_scale, *mlp_norm_offset;  // as LayerNorm's, of that before the MLPs
  Data data;
};

// Where the sums over tasks lie: the loss, and the gradients with respect to A, C and the other weights, laid out as
// these are.
struct StackSums {
  size_t loss, A, C, shares, norm_scale, norm_offset, into_hidden, out_of_hidden, mlp_norm_scale, mlp_norm_offset,
      count;
};
StackSums stack_sums(const Problem& problem);

// Rows of weights and of their gradients in an embedded layer are padded with zeros to a multiple of this, so that all
// instruction sets read them as vectors.
constexpr int ROW_ALIGNMENT = 16;

// One layer of linear attention on embedded tokens. A token t (a row) has the features
//
//     f = [gelu([t, 1] W), t, 1],
//
// of which its embedding and all else are linear: e = f R, and the query's entries move by
//
//     e_q[target o] + sum over heads h and keys j of (f_j . (e_q Q_h)) (f_j . V_ho).
//
// Where features are the last axis, there are first `hidden_stride` of them for the hidden units and then
// `token_stride` for the token and the constant, each padded with zeros; `feature_stride` is the sum.
struct EmbeddedProblem {
  int token_size, hidden_size, width, num_heads, output_size;
  int hidden_stride, token_stride, feature_stride, width_stride;
  int num_tokens, num_keys, batch_size;
  float token_clip;                   // infinite for none
  const float* tokens;                // [token_size, num_tokens, batch_size], the query last
  const float* answers;               // [output_size, batch_size], the query's targets
  const float* into_hidden;           // W [token_size + 1, hidden_stride]
  const float* embedding;             // R^T [width, feature_stride]
  const float* embedding_transposed;  // R [feature_stride, width_stride]
  const float* queries;               // Q [width, num_heads, feature_stride]
  const float* queries_transposed;    // [num_heads, feature_stride, width_stride]
  const float* values;                // V [num_heads, output_size, feature_stride]
};

// Where the sums over tasks lie: the loss, and the gradients with respect to W, R, Q and V, laid out as these are.
struct EmbeddedSums {
  size_t loss, into_hidden, embedding, queries, values, count;
};
EmbeddedSums embedded_sums(const EmbeddedProblem& problem);

// The same source compiled for one instruction set. Tasks are worked on in blocks of `lanes`, one per vector lane.
struct BlockKernel {
  const char* name;
  int lanes;
  size_t (*scratch_bytes)(const Problem&);
  // Writes stack_sums(problem).count sums over the tasks of blocks first..last-1. `scratch` is aligned to 64 bytes.
  void (*run_blocks)(const Problem&, int first, int last, void* scratch, float* sums);
  // The same for an embedded layer, with sums over the tasks first..last-1; `sums` is aligned to 64 bytes too.
  size_t (*embedded_scratch_bytes)(const EmbeddedProblem&);
  void (*run_embedded)(const EmbeddedProblem&, int first, int last, void* scratch, float* sums);
  // For tests: the words of a stream, and the unscaled random numbers of a sampled batch.
  void (*words)(Key key, uint32_t count, uint32_t* words);
  void (*draw)(const Problem&, float* inputs, float* weights, float* noise);
};

}  // namespace innerloop
