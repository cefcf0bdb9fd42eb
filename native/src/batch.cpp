#include "batch.h"

#include <atomic>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#if defined(INNERLOOP_X86)
#include <xmmintrin.h>
#endif

namespace innerloop {

size_t num_sums(const Problem& problem) {
  return 1 + 2 * size_t(problem.num_distinct_layers) * problem.num_heads * problem.token_size * problem.token_size;
}

namespace {

// Partial sums are added chunk by chunk, so their number decides the bits: it must not depend on the threads. Sixteen
// keep sixteen threads busy; each costs one sum over lanes per weight.
constexpr int MOST_CHUNKS = 16;

// Numbers too small for a normal float cost a hundred times the time of others; they count as zero. The setting belongs
// to the thread, which is XLA's, so it is put back.
class WithoutDenormals {
#if defined(INNERLOOP_X86)
 public:
  WithoutDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~WithoutDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

// Memory of a thread, kept between calls: batches come by the thousand.
class ThreadMemory {
 public:
  ~ThreadMemory() { std::free(memory_); }

  void* at_least(size_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = (bytes + 63) / 64 * 64;
      memory_ = std::aligned_alloc(64, size_);
      if (!memory_) std::abort();
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  size_t size_ = 0;
};

// What the threads share. A thread may come when all is done, after the call has returned: then it finds no chunk left
// and touches nothing but the counters.
struct Work {
  const BlockKernel* kernel;
  Problem problem;
  int num_blocks, num_chunks;
  float* sums;  // [num_chunks, num_sums]
  std::atomic<int> next{0}, done{0};
};

void take_chunks(Work& work) {
  WithoutDenormals setting;
  thread_local ThreadMemory memory;
  for (;;) {
    const int chunk = work.next.fetch_add(1);
    if (chunk >= work.num_chunks) return;
    const int first = int(int64_t(work.num_blocks) * chunk / work.num_chunks);
    const int last = int(int64_t(work.num_blocks) * (chunk + 1) / work.num_chunks);
    void* scratch = memory.at_least(work.kernel->scratch_bytes(work.problem));
    work.kernel->run_blocks(work.problem, first, last, scratch, work.sums + chunk * num_sums(work.problem));
    work.done.fetch_add(1, std::memory_order_release);
  }
}

// Visits corresponding entries of a row-form matrix and of its transpose.
template <class Use>
void visit_transposed(const Problem& problem, Use use) {
  const int size = problem.token_size;
  const size_t matrices = size_t(problem.num_distinct_layers) * problem.num_heads;
  for (size_t matrix = 0; matrix < matrices; ++matrix)
    for (int i = 0; i < size; ++i)
      for (int k = 0; k < size; ++k) use((matrix * size + i) * size + k, (matrix * size + k) * size + i, k);
}

}  // namespace

void run_batch(const BlockKernel& kernel, Problem problem, const Products& products, float damping,
               bool writes_targets_only, int num_threads, const Schedule& schedule, const Results& results) {
  const size_t num_weights = (num_sums(problem) - 1) / 2;
  thread_local std::vector<float> weights, sums;
  weights.resize(2 * num_weights);
  float *A = weights.data(), *C = A + num_weights;
  auto C_factor = [&](int column) { return writes_targets_only && column < problem.input_size ? 0.0f : damping; };
  visit_transposed(problem, [&](size_t entry, size_t transposed, int column) {
    A[entry] = products.W_KQ[transposed];
    C[entry] = C_factor(column) * products.W_PV[transposed];
  });
  problem.A = A;
  problem.C = C;

  auto work = std::make_shared<Work>();
  work->kernel = &kernel;
  work->problem = problem;
  work->num_blocks = (problem.batch_size + kernel.lanes - 1) / kernel.lanes;
  work->num_chunks = work->num_blocks < MOST_CHUNKS ? work->num_blocks : MOST_CHUNKS;
  sums.resize(work->num_chunks * num_sums(problem));
  work->sums = sums.data();
  if (num_threads > work->num_chunks) num_threads = work->num_chunks;
  for (int thread = 1; thread < num_threads; ++thread) schedule([work] { take_chunks(*work); });
  take_chunks(*work);
  // The other threads are in their last chunks, if they ever came: microseconds.
  while (work->done.load(std::memory_order_acquire) < work->num_chunks) std::this_thread::yield();

  float* total = sums.data();
  for (int chunk = 1; chunk < work->num_chunks; ++chunk)
    for (size_t entry = 0; entry < num_sums(problem); ++entry) total[entry] += total[chunk * num_sums(problem) + entry];
  const float share = 1.0f / problem.batch_size;
  *results.loss = share * total[0];
  visit_transposed(problem, [&](size_t entry, size_t transposed, int column) {
    results.W_KQ_gradient[transposed] = share * total[1 + entry];
    results.W_PV_gradient[transposed] = share * C_factor(column) * total[1 + num_weights + entry];
  });
}

}  // namespace innerloop
