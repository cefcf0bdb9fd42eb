#include "dispatch.h"

namespace innerloop {

#if defined(INNERLOOP_X86)
namespace avx512 {
extern const BlockKernel kernel;
}
namespace avx2 {
extern const BlockKernel kernel;
}
#endif
namespace portable {
extern const BlockKernel kernel;
}

namespace {

struct Candidate {
  const BlockKernel* kernel;
  bool is_supported;
};

}  // namespace

const BlockKernel* find_kernel(std::string_view name) {
  const Candidate candidates[] = {
  // widest first
#if defined(INNERLOOP_X86)
      {&avx512::kernel, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")},
      {&avx2::kernel, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
      {&portable::kernel, true},
  };
  for (const Candidate& candidate : candidates)
    if (candidate.is_supported && (name == "best" || name == candidate.kernel->name)) return candidate.kernel;
  return nullptr;
}

}  // namespace innerloop
