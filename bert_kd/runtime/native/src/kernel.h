// The kernel: one template over instruction set and precision.
//
// Here: the recurrent product fused with gates, cell and pooling; the plain product of higher
// layers and the head; attention pooling. An instruction set is a struct of vector operations (see
// kernel_portable.cpp for the plainest one) with a struct for each precision inside. Not here:
// which texts share a block, which thread does what (model.cpp).
//
// Each kernel_*.cpp includes this file and is compiled with flags of its own, so all of it lies in
// an unnamed namespace and none of it uses the standard library's inline code (see dispatch.h).

#include "dispatch.h"

namespace bert_kd {
namespace {

#define BERT_KD_INLINE inline __attribute__((always_inline))

// 2^t, with a minimax polynomial of relative error 8e-8 for the fraction of t.
template <class Isa>
BERT_KD_INLINE typename Isa::Float power_of_two(typename Isa::Float t) {
  using Float = typename Isa::Float;
  t = Isa::bound(t);
  const Float fraction = Isa::fraction(t);
  Float power = Isa::fma(Isa::all(1.8775766454e-3f), fraction, Isa::all(8.9893401625e-3f));
  power = Isa::fma(power, fraction, Isa::all(5.5826317993e-2f));
  power = Isa::fma(power, fraction, Isa::all(2.4015361706e-1f));
  power = Isa::fma(power, fraction, Isa::all(6.9315307320e-1f));
  power = Isa::fma(power, fraction, Isa::all(9.9999992506e-1f));
  return Isa::scale(power, t);
}

// Gates from powers of two: sigmoid(x) = 1 / (1 + 2^(−log2(e) · x)), tanh(x) = 2 · sigmoid(2x) − 1.
template <class Isa>
struct PowerGates {
  using Float = typename Isa::Float;
  static constexpr float kLog2E = 1.44269504088896341f;

  template <int kCount>
  static BERT_KD_INLINE void sigmoid(Float (&values)[kCount]) {
#pragma GCC unroll 8
    for (Float& value : values) value = inverse(Isa::multiply(value, Isa::all(-kLog2E)));
  }

  template <int kCount>
  static BERT_KD_INLINE void tanh(Float (&values)[kCount]) {
#pragma GCC unroll 8
    for (Float& value : values) {
      const Float sigmoid = inverse(Isa::multiply(value, Isa::all(-2.0f * kLog2E)));
      value = Isa::fma(sigmoid, Isa::all(2.0f), Isa::all(-1.0f));
    }
  }

 private:
  static BERT_KD_INLINE Float inverse(Float t) {
    return Isa::divide(Isa::all(1.0f), Isa::add(power_of_two<Isa>(t), Isa::all(1.0f)));
  }
};

// Sums of one register tile: kRows texts × one panel. Few rows leave the multipliers waiting for
// their own last sum, so these have kChains independent sums each, where there are registers.
template <class Isa, class Numbers, int kRows>
class Tile {
 public:
  using Sum = typename Numbers::Sum;
  static constexpr int kFree = kRows <= 2 ? Numbers::kRows / kRows : 1;
  static constexpr int kChains = kFree >= 4 ? 4 : kFree >= 2 ? 2 : 1;

  // inputs · panel of the matrix
  BERT_KD_INLINE void multiply(const Matrix& matrix, int panel, const char* const* inputs) {
    const std::ptrdiff_t bytes = std::ptrdiff_t{4} * matrix.groups;
    const char* weights =
        static_cast<const char*>(matrix.weights) + panel * bytes * (kVectors * Isa::kLanes);
    const std::int32_t* const start = matrix.start + panel * (kVectors * Isa::kLanes);
#pragma GCC unroll 4
    for (int vector = 0; vector < kVectors; ++vector) {
      const Sum first = Numbers::start(start + vector * Isa::kLanes);
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        sums_[0][row][vector] = first;
#pragma GCC unroll 4
        for (int chain = 1; chain < kChains; ++chain) sums_[chain][row][vector] = Numbers::zero();
      }
    }
#pragma GCC unroll 1
    for (std::ptrdiff_t at = 0; at < bytes; at += 4 * kChains) {
#pragma GCC unroll 4
      for (int chain = 0; chain < kChains; ++chain) {
        typename Numbers::Weights loaded[kVectors];
#pragma GCC unroll 4
        for (int vector = 0; vector < kVectors; ++vector, weights += 4 * Isa::kLanes) {
          loaded[vector] = Numbers::load_weights(weights);
        }
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row) {
          const typename Numbers::Input input = Numbers::broadcast(inputs[row] + at + 4 * chain);
#pragma GCC unroll 4
          for (int vector = 0; vector < kVectors; ++vector) {
            Numbers::multiply_add(sums_[chain][row][vector], input, loaded[vector]);
          }
        }
      }
    }
  }

  BERT_KD_INLINE Sum sum(int row, int vector) const {
    Sum sum = sums_[0][row][vector];
#pragma GCC unroll 4
    for (int chain = 1; chain < kChains; ++chain) {
      sum = Numbers::add(sum, sums_[chain][row][vector]);
    }
    return sum;
  }

 private:
  Sum sums_[kChains][kRows][kVectors];
};

template <class Isa>
struct Fp16Addend {
  static constexpr bool kScaled = false;
  static constexpr int kBytes = 2;
  static BERT_KD_INLINE typename Isa::Float load(const void* row, int at) {
    return Isa::load_fp16(static_cast<const uint16_t*>(row) + at);
  }
};

template <class Isa>
struct Int8Addend {
  static constexpr bool kScaled = true;
  static constexpr int kBytes = 1;
  static BERT_KD_INLINE typename Isa::Float load(const void* row, int at) {
    return Isa::load_int8(static_cast<const int8_t*>(row) + at);
  }
};

template <class Isa>
struct Fp32Addend {
  static constexpr bool kScaled = false;
  static constexpr int kBytes = 4;
  static BERT_KD_INLINE typename Isa::Float load(const void* row, int at) {
    return Isa::load(static_cast<const float*>(row) + at);
  }
};

// The gates, cells and states of kRows rows of kPanels panels, from `products` [panel, row, gate]
// with the states before.
//
// Each operation is done for all of them before the next one: the latency of one row's is hidden
// behind the others', and constants are loaded once. The products come through memory: that costs
// little, and leaves each half of the work all registers.
template <class Isa, class Numbers, class Addends, int kRows, int kPanels>
__attribute__((noinline)) void finish_rows(const Step& step, int panel, const Row* rows,
                                           const typename Numbers::Sum (*products)[kVectors]) {
  constexpr int kCount = kRows * kPanels;
  using Float = typename Isa::Float;
  using Gates = typename Numbers::Gates;
  const float* const scales = step.recurrent->scale + panel * (kVectors * Isa::kLanes);
  const auto row = [&](int at) -> const Row& { return rows[at % kRows]; };
  const auto unit = [&](int at) { return (panel + at / kRows) * Isa::kLanes; };

  const auto gate_sums = [&](int gate, Float(&sums)[kCount]) {
#pragma GCC unroll 8
    for (int at = 0; at < kCount; ++at) {
      const Float product = Numbers::to_float(products[at][gate]);
      const Float scale = Isa::load(scales + (at / kRows * kVectors + gate) * Isa::kLanes);
      const Float addend = Addends::load(row(at).addends, gate * step.units + unit(at));
      sums[at] = Addends::kScaled ? Isa::fma(addend, Isa::all(row(at).addend_scale),
                                             Isa::multiply(product, scale))
                                  : Isa::fma(product, scale, addend);
    }
    if (!step.match) return;
#pragma GCC unroll 8
    for (int at = 0; at < kCount; ++at) {
      sums[at] = Isa::add(sums[at], Isa::load(row(at).match + gate * step.units + unit(at)));
    }
  };

  Float cells[kCount], gates[kCount];
  gate_sums(kCandidate, cells);
  Gates::tanh(cells);
  gate_sums(kInput, gates);
  Gates::sigmoid(gates);
#pragma GCC unroll 8
  for (int at = 0; at < kCount; ++at) cells[at] = Isa::multiply(cells[at], gates[at]);
  gate_sums(kForget, gates);
  Gates::sigmoid(gates);
#pragma GCC unroll 8
  for (int at = 0; at < kCount; ++at) {
    float* const cell = row(at).cell + unit(at);
    cells[at] = Isa::fma(gates[at], Isa::load(cell), cells[at]);
    Isa::store(cell, cells[at]);
  }
  Gates::tanh(cells);
  gate_sums(kOutput, gates);
  Gates::sigmoid(gates);
  Float(&states)[kCount] = cells;
#pragma GCC unroll 8
  for (int at = 0; at < kCount; ++at) states[at] = Isa::multiply(cells[at], gates[at]);

  const auto state = [&](void* states, int at) {
    return static_cast<char*>(states) + std::ptrdiff_t{unit(at)} * Numbers::kStateBytes;
  };
#pragma GCC unroll 8
  for (int at = 0; at < kCount; ++at) {
    Numbers::store_state(state(row(at).next_state, at), states[at]);
  }
  switch (step.pooling) {
    case Pooling::kFinal:
#pragma GCC unroll 8
      for (int at = 0; at < kCount; ++at) Isa::store(row(at).pooled + unit(at), states[at]);
      break;
    case Pooling::kMax:
#pragma GCC unroll 8
      for (int at = 0; at < kCount; ++at) {
        float* const pooled = row(at).pooled + unit(at);
        Isa::store(pooled, Isa::max(Isa::load(pooled), states[at]));
      }
      break;
    case Pooling::kMean:
#pragma GCC unroll 8
      for (int at = 0; at < kCount; ++at) {
        float* const pooled = row(at).pooled + unit(at);
        Isa::store(pooled, Isa::add(Isa::load(pooled), states[at]));
      }
      break;
    case Pooling::kAttention:
#pragma GCC unroll 8
      for (int at = 0; at < kCount; ++at) Isa::store(row(at).kept_float + unit(at), states[at]);
      break;
  }
  if (step.keep) {
#pragma GCC unroll 8
    for (int at = 0; at < kCount; ++at) {
      Numbers::store_state(state(row(at).kept, at), states[at]);
    }
  }
  // Spread over the panels, so that the fetches never queue up in front of the weights' loads.
  if (!step.fetch) return;
#pragma GCC unroll 8
  for (int at = 0; at < kCount; ++at) {
    if (unit(at) * Addends::kBytes % 64 != 0) continue;
    const char* const upcoming = static_cast<const char*>(row(at).upcoming);
#pragma GCC unroll 4
    for (int gate = 0; gate < kVectors; ++gate) {
      __builtin_prefetch(upcoming + (gate * step.units + unit(at)) * Addends::kBytes, 0, 2);
    }
  }
}

template <class Isa, class Numbers, int kRows>
__attribute__((noinline)) void multiply_states(const Step& step, int panel, const Row* rows,
                                               typename Numbers::Sum (*products)[kVectors]) {
  const char* states[kRows];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) states[row] = static_cast<const char*>(rows[row].state);
  Tile<Isa, Numbers, kRows> tile;
  tile.multiply(*step.recurrent, panel, states);
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int gate = 0; gate < kVectors; ++gate) products[row][gate] = tile.sum(row, gate);
  }
}

// kPanels panels of the step for kRows rows. Six rows would not find registers for what their gates
// need, so these come in halves.
template <class Isa, class Numbers, class Addends, int kRows, int kPanels = 1>
void step_tile(const Step& step, int panel, const Row* rows) {
  typename Numbers::Sum products[kPanels * kRows][kVectors];
  if (step.first) {
    for (auto& row : products) {
      for (auto& product : row) product = Numbers::zero();
    }
  } else {
    for (int at = 0; at < kPanels; ++at) {
      multiply_states<Isa, Numbers, kRows>(step, panel + at, rows, products + at * kRows);
    }
  }
  if constexpr (kRows > 3) {
    constexpr int kHalf = (kRows + 1) / 2;
    finish_rows<Isa, Numbers, Addends, kHalf, 1>(step, panel, rows, products);
    finish_rows<Isa, Numbers, Addends, kRows - kHalf, 1>(step, panel, rows + kHalf,
                                                         products + kHalf);
  } else {
    finish_rows<Isa, Numbers, Addends, kRows, kPanels>(step, panel, rows, products);
  }
}

// Calls work(first, rows) with tiles of at most kMost rows, as even as can be: a last tile of one
// row would be the slowest of all.
template <int kMost, class Work>
BERT_KD_INLINE void for_each_tile(int rows, const Work& work) {
  const int tiles = (rows + kMost - 1) / kMost;
  for (int tile = 0, first = 0; tile < tiles; ++tile) {
    const int size = (rows - first + tiles - tile - 1) / (tiles - tile);
    work(first, size);
    first += size;
  }
}

template <class Isa, class Numbers, class Addends, int kRows>
BERT_KD_INLINE void step_tile_of(int count, const Step& step, int panel, const Row* rows) {
  if constexpr (kRows > 1) {
    if (count < kRows) {
      return step_tile_of<Isa, Numbers, Addends, kRows - 1>(count, step, panel, rows);
    }
  }
  step_tile<Isa, Numbers, Addends, kRows>(step, panel, rows);
}

// All panels of the step for one or two rows. The gates of so few are not enough to hide their
// latency: those of two panels are.
template <class Isa, class Numbers, class Addends, int kRows>
void step_few(const Step& step) {
  constexpr int kPanels = 2;
  const int panels = step.recurrent->panels, groups = (panels + kPanels - 1) / kPanels;
  for (int at = 0; at < groups; ++at) {
    const int first = (step.backwards ? groups - 1 - at : at) * kPanels;
    if (first + kPanels <= panels) {
      step_tile<Isa, Numbers, Addends, kRows, kPanels>(step, first, step.rows);
      continue;
    }
    for (int panel = first; panel < panels; ++panel) {
      step_tile<Isa, Numbers, Addends, kRows>(step, panel, step.rows);
    }
  }
}

template <class Isa, class Numbers, class Addends>
void step_block(const Step& step) {
  if (step.count == 1) return step_few<Isa, Numbers, Addends, 1>(step);
  if (step.count == 2) return step_few<Isa, Numbers, Addends, 2>(step);
  const int panels = step.recurrent->panels;
  for (int at = 0; at < panels; ++at) {
    const int panel = step.backwards ? panels - 1 - at : at;
    for_each_tile<Numbers::kRows>(step.count, [&](int first, int count) {
      step_tile_of<Isa, Numbers, Addends, Numbers::kRows>(count, step, panel, step.rows + first);
    });
  }
}

template <class Isa, class Numbers, int kRows>
__attribute__((noinline)) void multiply_tile(const Product& product, int panel, int first) {
  const Matrix& matrix = *product.matrix;
  const char* rows[kRows];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
    rows[row] = static_cast<const char*>(product.inputs[first + row]);
  }
  Tile<Isa, Numbers, kRows> tile;
  tile.multiply(matrix, panel, rows);
  const int at = panel * (kVectors * Isa::kLanes);
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
    float* out = product.out + (first + row) * product.row_stride + panel * product.panel_stride;
#pragma GCC unroll 4
    for (int vector = 0; vector < kVectors; ++vector) {
      const int outputs = at + vector * Isa::kLanes;
      Isa::store(out + vector * product.vector_stride,
                 Isa::fma(Numbers::to_float(tile.sum(row, vector)),
                          Isa::load(matrix.scale + outputs), Isa::load(matrix.bias + outputs)));
    }
  }
}

template <class Isa, class Numbers, int kRows>
BERT_KD_INLINE void multiply_tile_of(int rows, const Product& product, int panel, int first) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_tile_of<Isa, Numbers, kRows - 1>(rows, product, panel, first);
  }
  multiply_tile<Isa, Numbers, kRows>(product, panel, first);
}

template <class Isa, class Numbers>
void multiply_block(const Product& product) {
  for (int panel = 0; panel < product.matrix->panels; ++panel) {
    for_each_tile<Numbers::kRows>(product.rows, [&](int first, int rows) {
      multiply_tile_of<Isa, Numbers, Numbers::kRows>(rows, product, panel, first);
    });
  }
}

// Zhou et al. 2016, equations 9–11.
template <class Isa>
void attend(const Attention& attention) {
  using Float = typename Isa::Float;
  const int width = attention.width;
  float highest = 0.0f;
  for (int at = 0; at < attention.length; ++at) {
    const float* state = attention.states + std::ptrdiff_t{at} * width;
    Float score = Isa::all(0.0f);
    for (int unit = 0; unit < width; unit += Isa::kLanes) {
      Float tanh[] = {Isa::load(state + unit)};
      PowerGates<Isa>::tanh(tanh);
      score = Isa::fma(tanh[0], Isa::load(attention.weight + unit), score);
    }
    float lanes[Isa::kLanes];
    Isa::store(lanes, score);
    float sum = attention.bias;
    for (int lane = 0; lane < Isa::kLanes; ++lane) sum += lanes[lane];
    attention.scores[at] = sum;
    if (at == 0 || sum > highest) highest = sum;
  }
  float total = 0.0f;
  for (int at = 0; at < attention.length; ++at) {
    attention.scores[at] = __builtin_expf(attention.scores[at] - highest);
    total += attention.scores[at];
  }
  for (int unit = 0; unit < width; unit += Isa::kLanes) {
    Float sum = Isa::all(0.0f);
    for (int at = 0; at < attention.length; ++at) {
      sum = Isa::fma(Isa::load(attention.states + std::ptrdiff_t{at} * width + unit),
                     Isa::all(attention.scores[at] / total), sum);
    }
    Isa::store(attention.pooled + unit, sum);
  }
}

// The multiply-adds of the largest tile on registers alone: what no kernel can pass.
template <class Isa, class Numbers>
double peak_operations(int rounds) {
  constexpr int kSums = Numbers::kRows * kVectors;
  alignas(64) const char zeros[4 * Isa::kLanes] = {};
  typename Numbers::Sum sums[kSums];
#pragma GCC unroll 32
  for (int at = 0; at < kSums; ++at) sums[at] = Numbers::zero();
  const typename Numbers::Input input = Numbers::broadcast(zeros);
  const typename Numbers::Weights weights = Numbers::load_weights(zeros);
#pragma GCC unroll 1
  for (int round = 0; round < rounds; ++round) {
#pragma GCC unroll 32
    for (int at = 0; at < kSums; ++at) Numbers::multiply_add(sums[at], input, weights);
  }
#pragma GCC unroll 32
  for (int at = 1; at < kSums; ++at) sums[0] = Numbers::add(sums[0], sums[at]);
  // The sum is zero, which the compiler does not know: it keeps the multiply-adds.
  float lanes[Isa::kLanes];
  Isa::store(lanes, Numbers::to_float(sums[0]));
  return lanes[0] + 2.0 * rounds * kSums * Isa::kLanes * (4 / Numbers::kStateBytes);
}

// A multiply-add for every vector of `weights`, in order: what reading them costs at least. The
// weights are zeros and `bytes` is a multiple of eight vectors; returns zero.
template <class Isa, class Numbers>
double read_weights(const char* weights, std::ptrdiff_t bytes) {
  constexpr int kSums = 8, kVector = 4 * Isa::kLanes;
  alignas(64) const char zeros[kVector] = {};
  const typename Numbers::Input input = Numbers::broadcast(zeros);
  typename Numbers::Sum sums[kSums];
#pragma GCC unroll 8
  for (int at = 0; at < kSums; ++at) sums[at] = Numbers::zero();
#pragma GCC unroll 1
  for (std::ptrdiff_t first = 0; first < bytes; first += kSums * kVector) {
#pragma GCC unroll 8
    for (int at = 0; at < kSums; ++at) {
      Numbers::multiply_add(sums[at], input, Numbers::load_weights(weights + first + at * kVector));
    }
  }
#pragma GCC unroll 8
  for (int at = 1; at < kSums; ++at) sums[0] = Numbers::add(sums[0], sums[at]);
  float lanes[Isa::kLanes];
  Isa::store(lanes, Numbers::to_float(sums[0]));
  return lanes[0];
}

template <class Isa, class Numbers>
constexpr Kernel make_kernel() {
  return Kernel{
      Isa::kName,
      Numbers::kPrecision,
      Isa::kLanes,
      Numbers::kStateBytes,
      Numbers::kZero,
      {step_block<Isa, Numbers, Fp16Addend<Isa>>, step_block<Isa, Numbers, Int8Addend<Isa>>,
       step_block<Isa, Numbers, Fp32Addend<Isa>>},
      multiply_block<Isa, Numbers>,
      attend<Isa>,
      peak_operations<Isa, Numbers>,
      read_weights<Isa, Numbers>};
}

}  // namespace
}  // namespace bert_kd
