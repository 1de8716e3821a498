// A student that answers: token ids in, logits out.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "dispatch.h"
#include "tensor_file.h"

namespace bert_kd {

// Text i is ids[offsets[i]] … ids[offsets[i + 1] − 1], at least one token. The first offset is not
// negative and the last one not beyond the ids; of the others nothing is believed.
struct Sequences {
  const std::int32_t* ids;
  const std::int64_t* offsets;  // [count + 1]
  std::size_t count;
};

// All sizes of a student, as in `bert_kd.student.model.Shape`.
struct Shape {
  int vocabulary;
  int hidden;
  int padded;  // hidden, rounded up to a multiple of 16
  int layers;
  int dense;
  int classes;
  Pooling pooling;
  bool pair;
  bool match;
};

// Memory that begins with a cache line: a vector that lies across two costs twice.
template <class Value>
struct LineAllocator {
  using value_type = Value;
  LineAllocator() = default;
  template <class Other>
  LineAllocator(const LineAllocator<Other>&) {}

  Value* allocate(std::size_t count) {
    return static_cast<Value*>(::operator new(count * sizeof(Value), std::align_val_t{64}));
  }
  void deallocate(Value* values, std::size_t) { ::operator delete(values, std::align_val_t{64}); }
  friend bool operator==(const LineAllocator&, const LineAllocator&) { return true; }
  friend bool operator!=(const LineAllocator&, const LineAllocator&) { return false; }
};

template <class Value>
using Aligned = std::vector<Value, LineAllocator<Value>>;

// A matrix packed for a kernel.
struct Packed {
  Matrix view{};
  Aligned<unsigned char> weights;
  Aligned<float> scale;
  Aligned<float> bias;
  Aligned<std::int32_t> start;
};

struct Workspace;

class Model {
 public:
  // Reads the file of `bert_kd.runtime.native.fold`. `instruction_set`: null for the fastest that
  // this CPU has. Throws std::runtime_error where the file is damaged or of another kind, values
  // that are no numbers included, but for the table's; std::invalid_argument where this CPU has no
  // such instruction set.
  Model(std::shared_ptr<const TensorFile> file, const char* instruction_set);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const Shape& shape() const { return shape_; }
  const std::string& precision() const { return file_->metadata().at("precision"); }
  const char* instruction_set() const { return kernel_->instruction_set; }

  // Writes the logits [texts.count, classes] to `out`. Of pairs, `others` are the second texts;
  // elsewhere null. The answers do not depend on the number of threads; with what else is in the
  // call they differ by no more than the order of sums does. Safe to call from several threads.
  // Throws std::invalid_argument where the sequences don't fit the student, std::runtime_error
  // where a token's row of the table holds what is no number, or an answer is none.
  void logits(const Sequences& texts, const Sequences* others, int threads, float* out) const;

 private:
  struct Direction {
    Packed input;  // from the second layer on
    Packed recurrent;
  };
  struct Block;
  struct Scratch;
  friend struct Workspace;

  void check(const Sequences& texts) const;
  void check_row(std::int32_t id) const;
  void answer(const Sequences& texts, const Sequences* others, int threads, float* out,
              Workspace& workspace) const;
  void arrange(const Sequences& texts, const Sequences* others, Workspace& workspace) const;
  void mark_shared(Workspace& workspace, std::size_t pairs) const;
  void read(const Block& block, int layer, int side, Workspace& workspace, Scratch& scratch) const;
  void classify(std::size_t first, std::size_t rows, std::size_t texts, Workspace& workspace,
                Scratch& scratch, float* out) const;

  std::unique_ptr<Workspace> take_workspace() const;
  void give_back(std::unique_ptr<Workspace> workspace) const;

  std::shared_ptr<const TensorFile> file_;
  Shape shape_;
  const Kernel* kernel_;  // of the layers
  const Kernel* head_;    // of what is behind the pooling: fp32
  Addend table_format_;
  const char* table_;
  const float* table_scale_;  // or null
  mutable std::vector<std::atomic<bool>> row_is_checked_;  // [vocabulary], of a table of fp16
  const float* match_ = nullptr;
  std::vector<float> no_match_;        // zeros, for tokens that only one text has
  std::vector<Direction> directions_;  // [layer, side]
  const float* attention_weight_ = nullptr;
  float attention_bias_ = 0;
  Packed dense_;
  Packed output_;

  // Workspaces not in use. Slots are swapped, never locked: a fork can leave no lock behind.
  static constexpr int kSlots = 16;
  mutable std::atomic<Workspace*> free_[kSlots] = {};
};

}  // namespace bert_kd
