// The compiled instruction sets, and which of them this machine can run.
#pragma once

#include <string_view>

#include "problem.h"

namespace innerloop {

// The kernel called `name`; for "best", the widest that the machine supports. Null if there is none.
const BlockKernel* find_kernel(std::string_view name);

}  // namespace innerloop
