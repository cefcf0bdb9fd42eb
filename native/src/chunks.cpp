#include "chunks.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <thread>

#if defined(INNERLOOP_X86)
#include <xmmintrin.h>
#endif

namespace innerloop {

ThreadMemory::~ThreadMemory() { std::free(memory_); }

void* ThreadMemory::at_least(size_t bytes) {
  if (bytes > size_) {
    std::free(memory_);
    size_ = (bytes + 63) / 64 * 64;
    memory_ = std::aligned_alloc(64, size_);
    if (!memory_) std::abort();
  }
  return memory_;
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

// What the threads share. A thread may come when all is done, after the call has returned: then it finds no chunk left
// and touches nothing but the counters.
struct Work {
  Sum sum;
  int num_chunks;
  size_t stride;  // from one chunk's sums to the next chunk's
  float* sums;
  std::atomic<int> next{0}, done{0};
};

void take_chunks(Work& work) {
  WithoutDenormals setting;
  thread_local ThreadMemory memory;
  for (;;) {
    const int chunk = work.next.fetch_add(1);
    if (chunk >= work.num_chunks) return;
    const int first = int(int64_t(work.sum.num_items) * chunk / work.num_chunks);
    const int last = int(int64_t(work.sum.num_items) * (chunk + 1) / work.num_chunks);
    work.sum.add_up(first, last, memory.at_least(work.sum.scratch_bytes), work.sums + chunk * work.stride);
    work.done.fetch_add(1, std::memory_order_release);
  }
}

}  // namespace

const float* sum_over_chunks(Sum sum, int num_threads, const Schedule& schedule) {
  thread_local ThreadMemory sums;
  auto work = std::make_shared<Work>();
  work->num_chunks = sum.num_items < MOST_CHUNKS ? sum.num_items : MOST_CHUNKS;
  work->stride = (sum.num_sums + 15) / 16 * 16;
  work->sums = static_cast<float*>(sums.at_least(work->num_chunks * work->stride * sizeof(float)));
  work->sum = std::move(sum);
  if (num_threads > work->num_chunks) num_threads = work->num_chunks;
  for (int thread = 1; thread < num_threads; ++thread) schedule([work] { take_chunks(*work); });
  take_chunks(*work);
  // The other threads are in their last chunks, if they ever came: microseconds.
  while (work->done.load(std::memory_order_acquire) < work->num_chunks) std::this_thread::yield();

  for (int chunk = 1; chunk < work->num_chunks; ++chunk)
    for (size_t entry = 0; entry < work->sum.num_sums; ++entry)
      work->sums[entry] += work->sums[chunk * work->stride + entry];
  return work->sums;
}

}  // namespace innerloop
