#include "peak.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>

namespace bert_kd {

namespace {

// The most that `work` does a second, of many short rounds; it returns how much it did.
template <class Work>
double best_rate(double seconds, const Work& work) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point end = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                                   std::chrono::duration<double>(seconds));
  double best = 0;
  do {
    const Clock::time_point start = Clock::now();
    const double done = work();
    const std::chrono::duration<double> taken = Clock::now() - start;
    best = std::max(best, done / taken.count());
  } while (Clock::now() < end);
  return best;
}

}  // namespace

double measure_peak(Precision precision, double seconds) {
  constexpr int kRounds = 20000;
  const Kernel* const kernel = find_kernel(nullptr, precision);
  return best_rate(seconds, [&] { return kernel->peak_operations(kRounds); });
}

double measure_reading(Precision precision, std::ptrdiff_t bytes, double seconds) {
  constexpr std::ptrdiff_t kBlock = 8 * 64, kRoundBytes = std::ptrdiff_t{1} << 24;
  const Kernel* const kernel = find_kernel(nullptr, precision);
  const std::ptrdiff_t size = (bytes + kBlock - 1) / kBlock * kBlock;
  const std::unique_ptr<char[], void (*)(void*)> weights(
      static_cast<char*>(std::aligned_alloc(64, static_cast<std::size_t>(size))), std::free);
  if (!weights) throw std::bad_alloc();
  std::fill_n(weights.get(), size, '\0');
  const std::ptrdiff_t rounds = std::max<std::ptrdiff_t>(1, kRoundBytes / size);
  return best_rate(seconds, [&] {
    double sum = 0;
    for (std::ptrdiff_t round = 0; round < rounds; ++round) {
      sum += kernel->read_weights(weights.get(), size);
    }
    return sum + static_cast<double>(rounds * size);
  });
}

}  // namespace bert_kd
