// What the multiply-adds of one core of this CPU can do at most.

#pragma once

#include "dispatch.h"

namespace bert_kd {

// Operations per second, an addition and a multiplication each counted as one, of the instruction
// that the kernel of `precision` uses, measured for `seconds`: the best of many short rounds.
double measure_peak(Precision precision, double seconds);

}  // namespace bert_kd
