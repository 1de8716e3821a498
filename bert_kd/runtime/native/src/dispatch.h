// What the model asks of a kernel, and the choice of the kernel that this CPU can run.
//
// Here: plain data and function pointers alone. The kernels are compiled with flags of their own,
// so nothing inline may be shared with them: the linker would keep one copy of it, perhaps one
// with instructions that this CPU lacks.

#pragma once

#include <cstddef>
#include <cstdint>

namespace bert_kd {

enum class Precision { kFp32, kBf16, kInt8 };
enum class Pooling { kFinal, kMax, kMean, kAttention };

// Number format of what is added to the recurrent product: a row of the folded table, or the input
// product of a higher layer.
enum class Addend { kFp16, kInt8, kFp32 };

// A vector of weights is kVectors of a panel: for a recurrent matrix the four gates of as many
// units as the kernel has lanes, elsewhere four times as many outputs in a row.
constexpr int kVectors = 4;

// Gates in torch's order.
enum Gate { kInput, kForget, kCandidate, kOutput };

// int8 states are 127 · h, rounded: h is a sigmoid times a tanh, so nothing need be calibrated.
constexpr float kStateScale = 127.0f;

// A packed matrix. A group is 32 bits of one row's input: one fp32, two bf16 or four int8 values.
// Weights lie as [panel][group][vector][lane][value of the group].
struct Matrix {
  const void* weights;
  const float* scale;    // [panel][vector][lane], from the accumulator's unit to that of the answer
  const float* bias;     // [panel][vector][lane], or null
  const int32_t* start;  // [panel][vector][lane], what takes the offset of int8 inputs out again
  int panels;
  int groups;
};

// out[row][panel · panel_stride + vector · vector_stride + lane] = inputs[row] · matrix + bias
struct Product {
  const Matrix* matrix;
  const void* const* inputs;  // [rows]
  int rows;
  float* out;
  std::ptrdiff_t row_stride;
  int panel_stride;
  int vector_stride;
};

// A text in a step. All of its vectors are [unit], those of gates [gate, unit].
struct Row {
  const void* addends;   // of gates
  const void* upcoming;  // addends of a later step
  const float* match;    // of gates, added to the addends
  const void* state;     // before the step, in the kernel's format
  void* next_state;      // after it
  float* cell;
  float* pooled;
  void* kept;          // where to keep the state too
  float* kept_float;   // where to keep it in fp32, for attention
  float addend_scale;  // of int8 addends
};

// One step of a block of texts in one direction.
struct Step {
  const Matrix* recurrent;
  const Row* rows;
  int count;       // of rows
  int units;       // a multiple of 16
  bool first;      // all states are zero: there is no product to compute
  bool backwards;  // from the last panel to the first, see Model::read
  bool match;      // whether there is any
  bool keep;       // whether states are kept, for the next layer
  bool fetch;      // whether to fetch what is upcoming into the cache
  Pooling pooling;
};

// Attention pooling of one text.
struct Attention {
  const float* states;  // [length, width]
  const float* weight;  // [width]
  float bias;
  int length;
  int width;      // a multiple of 16
  float* scores;  // [length], scratch
  float* pooled;  // [width]
};

// The code for an instruction set and a precision.
struct Kernel {
  const char* instruction_set;
  Precision precision;  // of the packed weights: bf16 is widened to fp32 where need be
  int lanes;            // of one vector
  int state_bytes;      // of one unit's state
  unsigned char zero;   // the byte that fills a state of zeros: int8 states may have an offset
  void (*step[3])(const Step&);  // by Addend
  void (*multiply)(const Product&);
  void (*attend)(const Attention&);
  double (*peak_operations)(int rounds);  // runs multiply-adds; returns how many operations
  double (*read_weights)(const char* weights, std::ptrdiff_t bytes);  // of zeros; returns zero
};

// The kernel of `instruction_set` (null: the fastest that this CPU has) for weights of `precision`.
// Null where this CPU lacks it or there is none of that name.
const Kernel* find_kernel(const char* instruction_set, Precision precision);

// Names of the instruction sets that this CPU can run, fastest first; ends with null.
const char* const* instruction_sets();

}  // namespace bert_kd
