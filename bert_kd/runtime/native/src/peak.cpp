#include "peak.h"

#include <algorithm>
#include <chrono>

namespace bert_kd {

double measure_peak(Precision precision, double seconds) {
  constexpr int kRounds = 20000;
  const Kernel* const kernel = find_kernel(nullptr, precision);
  using Clock = std::chrono::steady_clock;
  const Clock::time_point end = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                                   std::chrono::duration<double>(seconds));
  double best = 0;
  do {
    const Clock::time_point start = Clock::now();
    const double operations = kernel->peak_operations(kRounds);
    const std::chrono::duration<double> taken = Clock::now() - start;
    best = std::max(best, operations / taken.count());
  } while (Clock::now() < end);
  return best;
}

}  // namespace bert_kd
