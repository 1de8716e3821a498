// What the multiply-adds of one core of this CPU can do at most.

#pragma once

#include <cstddef>

#include "dispatch.h"

namespace bert_kd {

// Operations per second, an addition and a multiplication each counted as one, of the instruction
// that the kernel of `precision` uses, measured for `seconds`: the best of many short rounds.
double measure_peak(Precision precision, double seconds);

// Bytes per second that one core reads of weights that are multiplied once, over and over in the
// same `bytes` (rounded up to whole blocks): the rate of the cache that holds them. As above.
double measure_reading(Precision precision, std::ptrdiff_t bytes, double seconds);

}  // namespace bert_kd
