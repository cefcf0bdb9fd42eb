// Sums over a batch on several threads.
#pragma once

#include <cstddef>
#include <functional>

namespace innerloop {

// Starts a piece of work on some other thread.
using Schedule = std::function<void(std::function<void()>)>;

// What is to be summed. `add_up` writes num_sums sums over the items first..last-1; `scratch` and `sums` are aligned to
// 64 bytes.
struct Sum {
  int num_items;
  size_t num_sums, scratch_bytes;
  std::function<void(int first, int last, void* scratch, float* sums)> add_up;
};

// The sums over all items, aligned to 64 bytes and valid until this thread's next call. The items are cut into chunks
// whose number does not depend on the threads, so the same bits come out for any number of them.
const float* sum_over_chunks(Sum sum, int num_threads, const Schedule& schedule);

// Memory of a thread, kept between calls: batches come by the thousand. Aligned to 64 bytes.
class ThreadMemory {
 public:
  ~ThreadMemory();
  void* at_least(size_t bytes);

 private:
  void* memory_ = nullptr;
  size_t size_ = 0;
};

}  // namespace innerloop
