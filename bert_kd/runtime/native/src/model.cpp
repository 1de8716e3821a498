#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#include "json.h"
#include "thread_pool.h"

namespace bert_kd {
namespace {

constexpr int kUnits = 16;
constexpr int kSides = 2;
constexpr int kGates = kVectors;

// Texts of a block: several register tiles, so that weights are fetched into L1 once for all of
// them, and few enough that their states stay there too.
constexpr int kBlockRows = 24;
// Tokens of a block whose states are kept, and texts in one pass through the layers: bounds memory.
constexpr std::int64_t kBlockTokens = 8192;
constexpr std::size_t kTextsPerPass = 4096;
// Tokens whose input product is computed at once in higher layers, ahead of the recurrence.
constexpr int kProductRows = 96;
// Rows of the table that are on their way from memory at least.
constexpr int kFetchedRows = 8;

[[noreturn]] void damaged(const std::string& what) { throw std::runtime_error(what); }

// --- the file ----------------------------------------------------------------------------------

int size_of(const Json& shape, const char* name, int lowest, int highest) {
  const Json* const value = shape.find(name);
  if (!value || value->kind != Json::Kind::kNumber || value->number != std::floor(value->number) ||
      value->number < lowest || value->number > highest) {
    damaged(std::string("has a shape without a valid ") + name);
  }
  return static_cast<int>(value->number);
}

bool flag_of(const Json& shape, const char* name) {
  const Json* const value = shape.find(name);
  if (!value || value->kind != Json::Kind::kBool) {
    damaged(std::string("has a shape without a valid ") + name);
  }
  return value->boolean;
}

const std::string& metadata_of(const TensorFile& file, const char* name) {
  const auto found = file.metadata().find(name);
  if (found == file.metadata().end()) damaged(std::string("has no metadata ") + name);
  return found->second;
}

Shape read_shape(const TensorFile& file) {
  if (metadata_of(file, "format") != "1") damaged("is of another format than 1");
  const Json facts = parse_json(metadata_of(file, "shape"));
  Shape shape;
  shape.vocabulary = size_of(facts, "vocabulary", 1, 1 << 30);
  shape.hidden = size_of(facts, "hidden", 1, 1 << 14);
  shape.padded = (shape.hidden + kUnits - 1) / kUnits * kUnits;
  shape.layers = size_of(facts, "layers", 1, 1 << 10);
  shape.dense = size_of(facts, "dense", 0, 1 << 14);
  shape.classes = size_of(facts, "classes", 1, 1 << 16);
  shape.pair = flag_of(facts, "pair");
  shape.match = flag_of(facts, "match");
  if (shape.match && !shape.pair) damaged("has a match of texts that are no pairs");
  const Json* const pooling = facts.find("pooling");
  const std::string name = pooling ? pooling->string : "";
  if (name == "final") {
    shape.pooling = Pooling::kFinal;
  } else if (name == "max") {
    shape.pooling = Pooling::kMax;
  } else if (name == "mean") {
    shape.pooling = Pooling::kMean;
  } else if (name == "attention") {
    shape.pooling = Pooling::kAttention;
  } else {
    damaged("has the unknown pooling " + name);
  }
  return shape;
}

Precision read_precision(const TensorFile& file) {
  const std::string& name = metadata_of(file, "precision");
  if (name == "fp32") return Precision::kFp32;
  if (name == "bf16") return Precision::kBf16;
  if (name != "int8") damaged("has the unknown precision " + name);
  return Precision::kInt8;
}

Dtype dtype_of(Precision precision) {
  switch (precision) {
    case Precision::kFp32:
      return Dtype::kFp32;
    case Precision::kBf16:
      return Dtype::kBf16;
    case Precision::kInt8:
      break;
  }
  return Dtype::kInt8;
}

const float* floats(const TensorFile& file, const std::string& name,
                    const std::vector<std::size_t>& shape) {
  const Tensor& tensor = file.get(name, Dtype::kFp32, shape);
  const float* const values = static_cast<const float*>(tensor.data);
  for (std::size_t at = 0; at < tensor.count(); ++at) {
    if (!std::isfinite(values[at])) damaged("has values in " + name + " that are no numbers");
  }
  return values;
}

// --- packing -----------------------------------------------------------------------------------

// What a packed matrix is made of: rows are outputs, columns are inputs.
struct Source {
  const Tensor* weights;
  int rows;
  int columns;
  const float* scale = nullptr;  // [rows]
  const float* bias = nullptr;   // [rows]
  // Gates: vector v of a panel is gate v. Elsewhere the vectors of a panel stand in a row.
  int units = 0;

  int row(int panel, int vector, int lane, int lanes) const {
    if (units) return vector * units + panel * lanes + lane;
    return (panel * kVectors + vector) * lanes + lane;
  }
};

float widen(std::uint16_t bf16) {
  const std::uint32_t bits = std::uint32_t{bf16} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Writes a weight in the kernel's format.
void write_weight(unsigned char* to, const Source& source, std::size_t at, Precision precision) {
  if (precision == Precision::kInt8) {
    const std::int8_t value = static_cast<const std::int8_t*>(source.weights->data)[at];
    // −128 has no opposite: kernels that move signs from one factor to the other need one.
    if (value == -128) damaged("has int8 weights below -127");
    std::memcpy(to, &value, sizeof value);
    return;
  }
  const bool narrow = source.weights->dtype == Dtype::kBf16;
  const std::uint16_t bits =
      narrow ? static_cast<const std::uint16_t*>(source.weights->data)[at] : std::uint16_t{0};
  const float value = narrow ? widen(bits) : static_cast<const float*>(source.weights->data)[at];
  if (!std::isfinite(value)) damaged("has weights that are no numbers");
  if (precision == Precision::kBf16) {
    std::memcpy(to, &bits, sizeof bits);
  } else {
    std::memcpy(to, &value, sizeof value);
  }
}

Packed pack(const Kernel& kernel, const Source& source) {
  const int lanes = kernel.lanes;
  const int values = 4 / kernel.state_bytes;  // of a group
  const int outputs = kVectors * lanes;
  const int panels = (source.rows + outputs - 1) / outputs;
  const int columns = (source.columns + kUnits - 1) / kUnits * kUnits;
  const std::size_t all = std::size_t(panels) * outputs;
  const std::size_t bytes = all * columns * kernel.state_bytes;

  Packed packed;
  packed.weights = Aligned<unsigned char>(bytes);
  packed.scale = Aligned<float>(all);
  packed.bias = Aligned<float>(all);
  packed.start = Aligned<std::int32_t>(all);
  for (std::size_t to = 0; to < all; ++to) {
    const int lane = int(to) % lanes, vector = int(to) / lanes % kVectors,
              panel = int(to) / outputs;
    const int row = source.row(panel, vector, lane, lanes);
    if (row >= source.rows) continue;
    const float scale = source.scale ? source.scale[row] / kStateScale : 1.0f;
    packed.scale[to] = scale;
    if (source.bias) packed.bias[to] = source.bias[row];
    std::int32_t sum = 0;
    for (int column = 0; column < source.columns; ++column) {
      const std::size_t group = std::size_t(panel) * (columns / values) + column / values;
      unsigned char* const at = packed.weights.data() +
                                ((group * kVectors + vector) * lanes + lane) * 4 +
                                column % values * kernel.state_bytes;
      write_weight(at, source, std::size_t(row) * source.columns + column, kernel.precision);
      if (kernel.precision == Precision::kInt8) sum += static_cast<signed char>(*at);
    }
    packed.start[to] = -sum * kernel.zero;
  }
  packed.view = Matrix{
      packed.weights.data(), packed.scale.data(), packed.bias.data(), packed.start.data(), panels,
      columns / values};
  return packed;
}

Packed pack_gates(const TensorFile& file, const Kernel& kernel, Dtype dtype,
                  const std::string& name, const Shape& shape, int columns, const float* bias) {
  const std::size_t units = shape.padded;
  Source source{};
  source.weights = &file.get(name, dtype, {kGates, units, std::size_t(columns)});
  source.rows = kGates * shape.padded;
  source.columns = columns;
  source.units = shape.padded;
  source.bias = bias;
  if (dtype == Dtype::kInt8) source.scale = floats(file, name + ".scale", {kGates, units});
  return pack(kernel, source);
}

Packed pack_head(const TensorFile& file, const Kernel& kernel, const std::string& name, int rows,
                 int columns) {
  Source source{};
  source.weights =
      &file.get(name + ".weight", Dtype::kFp32, {std::size_t(rows), std::size_t(columns)});
  source.rows = rows;
  source.columns = columns;
  source.bias = floats(file, name + ".bias", {std::size_t(rows)});
  return pack(kernel, source);
}

// Outputs of a packed matrix, those included that only fill the last panel.
int outputs_of(const Matrix& matrix, const Kernel& kernel) {
  return matrix.panels * kVectors * kernel.lanes;
}

}  // namespace

// --- workspaces --------------------------------------------------------------------------------

// Texts of similar length that go through a layer side by side.
struct Model::Block {
  std::size_t first;  // in the order of lengths
  int rows;
  int slot;  // of its kept states
};

// What a thread needs for itself.
struct Model::Scratch {
  Aligned<unsigned char> state[2];  // before and after a step: [row, unit]
  Aligned<float> cell;              // [row, unit]
  Aligned<float> pooled;            // [row, unit]
  Aligned<float> products;          // [token, gate, unit] of a higher layer's input
  std::vector<const void*> inputs;  // [token] of these
  Aligned<float> features;          // [row, feature] of the head
  Aligned<float> hidden;            // [row, dense]
  Aligned<float> answers;           // [row, class]
  std::vector<float> scores;        // [token] of attention
  Row rows[kBlockRows];
};

struct Workspace {
  struct Text {
    const std::int32_t* ids;
    const unsigned char* shared;  // [length], whether a token is in the other text too; or null
    int length;
    int index;           // where its pooled state goes
    std::int64_t start;  // of its tokens in its block's kept states
  };

  // States of a block that are kept: of one layer for the next, or for attention.
  struct Kept {
    Aligned<unsigned char> states[2];  // by layer, in turn: [token, side, unit]
    Aligned<float> float_states;       // [token, side, unit]
  };

  std::vector<Text> texts;  // longest first
  std::vector<Text> sorted;
  std::vector<std::uint32_t> counts;
  std::vector<Model::Block> blocks;
  std::vector<unsigned char> shared;
  std::vector<unsigned char> seen;  // [vocabulary]
  Aligned<float> pooled;            // [text, side, unit]
  std::vector<Kept> kept;
  std::vector<Model::Scratch> scratch;
};

namespace {

template <class Values>
typename Values::value_type* at_least(Values& values, std::size_t count) {
  if (values.size() < count) values.resize(count);
  return values.data();
}

}  // namespace

std::unique_ptr<Workspace> Model::take_workspace() const {
  for (auto& slot : free_) {
    if (Workspace* const workspace = slot.exchange(nullptr)) {
      return std::unique_ptr<Workspace>(workspace);
    }
  }
  return std::make_unique<Workspace>();
}

void Model::give_back(std::unique_ptr<Workspace> workspace) const {
  for (auto& slot : free_) {
    Workspace* none = nullptr;
    if (slot.compare_exchange_strong(none, workspace.get())) {
      workspace.release();
      return;
    }
  }
}

// --- the model ---------------------------------------------------------------------------------

Model::Model(std::shared_ptr<const TensorFile> file, const char* instruction_set)
    : file_(std::move(file)), shape_(read_shape(*file_)) {
  const Precision precision = read_precision(*file_);
  kernel_ = find_kernel(instruction_set, precision);
  head_ = find_kernel(instruction_set, Precision::kFp32);
  if (!kernel_) {
    std::string known;
    for (const char* const* name = instruction_sets(); *name; ++name) {
      known += (known.empty() ? "" : ", ") + std::string(*name);
    }
    throw std::invalid_argument(std::string("this CPU has no instruction set ") + instruction_set +
                                ": use " + known);
  }

  const std::size_t rows = shape_.vocabulary, units = shape_.padded;
  const Tensor& table = file_->get("table", {rows, kSides, kGates, units});
  if (table.dtype != Dtype::kFp16 && table.dtype != Dtype::kInt8) {
    damaged("has a table that is neither fp16 nor int8");
  }
  table_format_ = table.dtype == Dtype::kFp16 ? Addend::kFp16 : Addend::kInt8;
  table_ = static_cast<const char*>(table.data);
  if (table.dtype == Dtype::kFp16) row_is_checked_ = std::vector<std::atomic<bool>>(rows);
  table_scale_ =
      table.dtype == Dtype::kInt8 ? floats(*file_, "table.scale", {rows, kSides}) : nullptr;
  if (shape_.match) {
    match_ = floats(*file_, "match", {kSides, kGates, units});
    no_match_.resize(kGates * units);
  }

  const Dtype dtype = dtype_of(precision);
  for (int layer = 0; layer < shape_.layers; ++layer) {
    for (const char* const side : {"rightward", "leftward"}) {
      const std::string name = "layers." + std::to_string(layer) + "." + side;
      Direction direction;
      direction.recurrent =
          pack_gates(*file_, *kernel_, dtype, name + ".recurrent", shape_, shape_.padded, nullptr);
      if (layer > 0) {
        const float* const bias = floats(*file_, name + ".bias", {kGates, units});
        direction.input = pack_gates(*file_, *kernel_, dtype, name + ".input", shape_,
                                     kSides * shape_.padded, bias);
      }
      directions_.push_back(std::move(direction));
    }
  }
  if (shape_.pooling == Pooling::kAttention) {
    attention_weight_ = floats(*file_, "attention.weight", {kSides * units});
    attention_bias_ = *floats(*file_, "attention.bias", {1});
  }
  const int pooled = kSides * shape_.padded * (shape_.pair ? 4 : 1);
  if (shape_.dense) dense_ = pack_head(*file_, *head_, "dense", shape_.dense, pooled);
  output_ =
      pack_head(*file_, *head_, "output", shape_.classes, shape_.dense ? shape_.dense : pooled);
}

Model::~Model() {
  for (auto& slot : free_) delete slot.load();
}

void Model::check(const Sequences& texts) const {
  for (std::size_t text = 0; text < texts.count; ++text) {
    // Compared before they are subtracted: offsets may be any numbers. None of those before is
    // negative.
    const std::int64_t begin = texts.offsets[text], end = texts.offsets[text + 1];
    if (end <= begin || end - begin > 0x7fffffff) {
      throw std::invalid_argument("text " + std::to_string(text) + " begins at token " +
                                  std::to_string(begin) + " and ends before token " +
                                  std::to_string(end));
    }
  }
  const std::int32_t* const ids = texts.ids;
  bool known = true;
  for (std::int64_t at = texts.offsets[0]; at < texts.offsets[texts.count]; ++at) {
    known &= static_cast<std::uint32_t>(ids[at]) < static_cast<std::uint32_t>(shape_.vocabulary);
  }
  if (!known) {
    throw std::invalid_argument("there are token ids outside 0 to " +
                                std::to_string(shape_.vocabulary - 1));
  }
  if (row_is_checked_.empty()) return;
  for (std::int64_t at = texts.offsets[0]; at < texts.offsets[texts.count]; ++at) {
    if (!row_is_checked_[ids[at]].load(std::memory_order_relaxed)) check_row(ids[at]);
  }
}

// The table is too large to be read through when a file is opened: each row is checked before it is
// used for the first time. Kernels may make a number of what is none.
void Model::check_row(std::int32_t id) const {
  constexpr std::uint16_t kExponent = 0x7c00;
  const std::size_t count = std::size_t{kSides} * kGates * shape_.padded;
  const auto* const values = reinterpret_cast<const std::uint16_t*>(table_) + id * count;
  bool finite = true;
  for (std::size_t at = 0; at < count; ++at) finite &= (values[at] & kExponent) != kExponent;
  if (!finite) damaged("has values in table that are no numbers");
  row_is_checked_[id].store(true, std::memory_order_relaxed);
}

void Model::logits(const Sequences& texts, const Sequences* others, int threads, float* out) const {
  if (threads < 1) throw std::invalid_argument("threads is less than 1");
  if (shape_.pair != (others != nullptr)) {
    throw std::invalid_argument(shape_.pair ? "this student compares two texts; one was given"
                                            : "this student reads one text; two were given");
  }
  if (others && others->count != texts.count) {
    throw std::invalid_argument(std::to_string(texts.count) + " texts stand beside " +
                                std::to_string(others->count) + " second texts");
  }
  if (texts.count == 0) return;
  check(texts);
  if (others) check(*others);
  std::unique_ptr<Workspace> workspace = take_workspace();
  for (std::size_t first = 0; first < texts.count; first += kTextsPerPass) {
    const std::size_t count = std::min(kTextsPerPass, texts.count - first);
    const Sequences some{texts.ids, texts.offsets + first, count};
    const Sequences other_some{others ? others->ids : nullptr,
                               others ? others->offsets + first : nullptr, count};
    answer(some, others ? &other_some : nullptr, threads, out + first * shape_.classes, *workspace);
  }
  give_back(std::move(workspace));
  bool finite = true;
  for (std::size_t at = 0; at < texts.count * shape_.classes; ++at)
    finite &= std::isfinite(out[at]);
  if (!finite) damaged("gives answers that are no numbers");
}

// Sorts all texts by length, longest first, and cuts them into blocks.
void Model::arrange(const Sequences& texts, const Sequences* others, Workspace& workspace) const {
  const std::size_t count = texts.count * (others ? 2 : 1);
  workspace.texts.clear();
  int longest = 0;
  for (const Sequences* const side : {&texts, others}) {
    if (!side) continue;
    for (std::size_t text = 0; text < side->count; ++text) {
      const std::int64_t begin = side->offsets[text];
      const int length = static_cast<int>(side->offsets[text + 1] - begin);
      const int index = static_cast<int>(workspace.texts.size());
      workspace.texts.push_back({side->ids + begin, nullptr, length, index, 0});
      longest = std::max(longest, length);
    }
  }
  if (shape_.match) mark_shared(workspace, texts.count);
  std::stable_sort(workspace.texts.begin(), workspace.texts.end(),
                   [](const auto& a, const auto& b) { return a.length > b.length; });

  const bool keeps = shape_.layers > 1 || shape_.pooling == Pooling::kAttention;
  workspace.blocks.clear();
  for (std::size_t first = 0; first < count;) {
    std::int64_t rows = kBlockRows;
    if (keeps)
      rows =
          std::min(rows, std::max<std::int64_t>(1, kBlockTokens / workspace.texts[first].length));
    rows = std::min<std::int64_t>(rows, count - first);
    std::int64_t start = 0;
    for (std::int64_t row = 0; row < rows; ++row) {
      workspace.texts[first + row].start = start;
      start += workspace.texts[first + row].length;
    }
    workspace.blocks.push_back({first, static_cast<int>(rows), 0});
    first += rows;
  }
}

// Marks the tokens of each pair's texts that are in the other one too.
void Model::mark_shared(Workspace& workspace, std::size_t pairs) const {
  std::size_t tokens = 0;
  for (const auto& text : workspace.texts) tokens += text.length;
  unsigned char* shared = at_least(workspace.shared, tokens);
  unsigned char* const seen = at_least(workspace.seen, shape_.vocabulary);
  for (std::size_t at = 0; at < workspace.texts.size(); ++at) {
    Workspace::Text& text = workspace.texts[at];
    const Workspace::Text& other = workspace.texts[at < pairs ? at + pairs : at - pairs];
    for (int token = 0; token < other.length; ++token) seen[other.ids[token]] = 1;
    for (int token = 0; token < text.length; ++token) shared[token] = seen[text.ids[token]];
    for (int token = 0; token < other.length; ++token) seen[other.ids[token]] = 0;
    text.shared = shared;
    shared += text.length;
  }
}

// Reads a block in one direction of one layer.
void Model::read(const Block& block, int layer, int side, Workspace& workspace,
                 Scratch& scratch) const {
  const std::size_t units = shape_.padded, rows = block.rows;
  const std::size_t state_bytes = units * kernel_->state_bytes;
  const bool last = layer + 1 == shape_.layers;
  const Direction& direction = directions_[layer * kSides + side];
  const Workspace::Text* const texts = &workspace.texts[block.first];

  for (auto& state : scratch.state) {
    std::memset(at_least(state, rows * state_bytes), kernel_->zero, rows * state_bytes);
  }
  std::fill_n(at_least(scratch.cell, rows * units), rows * units, 0.0f);
  const bool highest = last && shape_.pooling == Pooling::kMax;
  std::fill_n(at_least(scratch.pooled, rows * units), rows * units, highest ? -INFINITY : 0.0f);

  Workspace::Kept* const kept = workspace.kept.empty() ? nullptr : &workspace.kept[block.slot];
  unsigned char* const states = last ? nullptr : kept->states[layer & 1].data();
  const unsigned char* const below = layer ? kept->states[(layer - 1) & 1].data() : nullptr;
  const bool attention = last && shape_.pooling == Pooling::kAttention;

  for (std::size_t row = 0; row < rows; ++row) {
    scratch.rows[row] = Row{};
    scratch.rows[row].cell = scratch.cell.data() + row * units;
    scratch.rows[row].pooled = scratch.pooled.data() + row * units;
  }
  Step step{};
  step.recurrent = &direction.recurrent.view;
  step.rows = scratch.rows;
  step.units = shape_.padded;
  step.match = layer == 0 && match_;
  step.keep = states != nullptr;
  step.fetch = layer == 0;
  step.pooling = last ? shape_.pooling : Pooling::kFinal;
  const auto advance = kernel_->step[static_cast<int>(layer ? Addend::kFp32 : table_format_)];

  const auto place = [&](const Workspace::Text& text, int at) {
    return side == 0 ? at : text.length - 1 - at;
  };
  const std::size_t row_bytes = kGates * units * (table_format_ == Addend::kFp16 ? 2 : 1);
  const auto table_row = [&](const Workspace::Text& text, int at) -> const char* {
    return table_ + (std::size_t(text.ids[place(text, at)]) * kSides + side) * row_bytes;
  };

  const int ahead = std::max(1, kFetchedRows / block.rows);
  int active = block.rows;
  int products = 0;  // steps whose input products are computed
  const float* product = nullptr;
  if (layer == 0) {
    for (int at = 0; at < ahead; ++at) {
      for (int row = 0; row < block.rows && at < texts[row].length; ++row) {
        const char* const values = table_row(texts[row], at);
        for (std::size_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(values + byte);
      }
    }
  }
  for (int at = 0; at < texts[0].length; ++at) {
    while (texts[active - 1].length <= at) --active;
    if (layer > 0 && at == products) {
      // Rows of this chunk of steps, in the order in which the steps will want them.
      const int steps = std::min(std::max(1, kProductRows / active), texts[0].length - at);
      scratch.inputs.clear();
      for (int next = at; next < at + steps; ++next) {
        for (int row = 0; row < active && next < texts[row].length; ++row) {
          const std::size_t token = texts[row].start + place(texts[row], next);
          scratch.inputs.push_back(below + token * kSides * state_bytes);
        }
      }
      const std::size_t count = scratch.inputs.size();
      float* const out = at_least(scratch.products, count * kGates * units);
      kernel_->multiply({&direction.input.view, scratch.inputs.data(), static_cast<int>(count), out,
                         static_cast<std::ptrdiff_t>(kGates * units), kernel_->lanes,
                         shape_.padded});
      product = out;
      products = at + steps;
    }
    for (int at_row = 0; at_row < active; ++at_row) {
      const Workspace::Text& text = texts[at_row];
      const int token = place(text, at);
      Row& row = scratch.rows[at_row];
      row.state = scratch.state[at & 1].data() + at_row * state_bytes;
      row.next_state = scratch.state[~at & 1].data() + at_row * state_bytes;
      if (layer == 0) {
        row.addends = table_row(text, at);
        row.upcoming = table_row(text, std::min(at + ahead, text.length - 1));
        if (table_scale_) {
          row.addend_scale = table_scale_[std::size_t(text.ids[token]) * kSides + side];
        }
        if (match_)
          row.match = text.shared[token] ? match_ + side * kGates * units : no_match_.data();
      } else {
        row.addends = product;
        product += kGates * units;
      }
      const std::size_t kept_at = (text.start + token) * kSides + side;
      if (states) row.kept = states + kept_at * state_bytes;
      if (attention) row.kept_float = kept->float_states.data() + kept_at * units;
    }
    step.count = active;
    step.first = at == 0;
    // There and back again: a step begins with the weights that the one before left in the cache.
    step.backwards = at & 1;
    advance(step);
  }
  if (!last || attention) return;
  for (int row = 0; row < block.rows; ++row) {
    const float* const from = scratch.pooled.data() + row * units;
    float* const to =
        workspace.pooled.data() + (std::size_t(texts[row].index) * kSides + side) * units;
    const float share = shape_.pooling == Pooling::kMean ? 1.0f / texts[row].length : 1.0f;
    for (std::size_t unit = 0; unit < units; ++unit) to[unit] = from[unit] * share;
  }
}

// Writes the logits of the texts first … first + rows of `texts`.
void Model::classify(std::size_t first, std::size_t rows, std::size_t texts, Workspace& workspace,
                     Scratch& scratch, float* out) const {
  const std::size_t width = kSides * shape_.padded;
  const void* inputs[kBlockRows];
  if (shape_.pair) {
    float* const features = at_least(scratch.features, rows * 4 * width);
    for (std::size_t row = 0; row < rows; ++row) {
      const float* const u = workspace.pooled.data() + (first + row) * width;
      const float* const v = u + texts * width;
      float* const to = features + row * 4 * width;
      for (std::size_t unit = 0; unit < width; ++unit) {
        to[unit] = u[unit];
        to[width + unit] = v[unit];
        to[2 * width + unit] = u[unit] * v[unit];
        to[3 * width + unit] = std::fabs(u[unit] - v[unit]);
      }
      inputs[row] = to;
    }
  } else {
    for (std::size_t row = 0; row < rows; ++row) {
      inputs[row] = workspace.pooled.data() + (first + row) * width;
    }
  }
  const auto multiply = [&](const Packed& packed, Aligned<float>& values) {
    const std::ptrdiff_t outputs = outputs_of(packed.view, *head_);
    float* const to = at_least(values, rows * outputs);
    head_->multiply({&packed.view, inputs, static_cast<int>(rows), to, outputs,
                     kVectors * head_->lanes, head_->lanes});
    for (std::size_t row = 0; row < rows; ++row) inputs[row] = to + row * outputs;
    return outputs;
  };
  if (shape_.dense) {
    const std::ptrdiff_t outputs = multiply(dense_, scratch.hidden);
    for (std::size_t at = 0; at < rows * outputs; ++at) {
      // Not std::max: what is no number must stay so to be seen.
      scratch.hidden[at] = scratch.hidden[at] < 0.0f ? 0.0f : scratch.hidden[at];
    }
  }
  multiply(output_, scratch.answers);
  for (std::size_t row = 0; row < rows; ++row) {
    std::memcpy(out + (first + row) * shape_.classes, inputs[row], shape_.classes * sizeof(float));
  }
}

void Model::answer(const Sequences& texts, const Sequences* others, int threads, float* out,
                   Workspace& workspace) const {
  arrange(texts, others, workspace);
  const std::size_t width = kSides * shape_.padded;
  at_least(workspace.pooled, workspace.texts.size() * width);
  const int blocks = static_cast<int>(workspace.blocks.size());
  const bool keeps = shape_.layers > 1 || shape_.pooling == Pooling::kAttention;
  // Blocks that go through the layers together. Where states are kept there are as few as can be.
  const int together = keeps ? std::min(threads, blocks) : blocks;
  const int workers = std::min(threads, std::max(blocks, kSides * together));
  if (workspace.scratch.size() < std::size_t(workers)) workspace.scratch.resize(workers);
  if (keeps && workspace.kept.size() < std::size_t(together)) workspace.kept.resize(together);

  for (int first = 0; first < blocks; first += together) {
    const int count = std::min(together, blocks - first);
    if (keeps) {
      for (int slot = 0; slot < count; ++slot) {
        Block& block = workspace.blocks[first + slot];
        block.slot = slot;
        const Workspace::Text& last = workspace.texts[block.first + block.rows - 1];
        const std::size_t values = (last.start + last.length) * width;
        if (shape_.layers > 1) {
          for (auto& states : workspace.kept[slot].states) {
            at_least(states, values * kernel_->state_bytes);
          }
        }
        if (shape_.pooling == Pooling::kAttention) {
          at_least(workspace.kept[slot].float_states, values);
        }
      }
    }
    for (int layer = 0; layer < shape_.layers; ++layer) {
      parallel_for(count * kSides, workers, [&](int task, int worker) {
        read(workspace.blocks[first + task / kSides], layer, task % kSides, workspace,
             workspace.scratch[worker]);
      });
    }
    if (shape_.pooling != Pooling::kAttention) continue;
    parallel_for(count, workers, [&](int task, int worker) {
      const Block& block = workspace.blocks[first + task];
      const Workspace::Kept& kept = workspace.kept[block.slot];
      for (int row = 0; row < block.rows; ++row) {
        const Workspace::Text& text = workspace.texts[block.first + row];
        float* const scores = at_least(workspace.scratch[worker].scores, text.length);
        kernel_->attend({kept.float_states.data() + text.start * width, attention_weight_,
                         attention_bias_, text.length, static_cast<int>(width), scores,
                         workspace.pooled.data() + text.index * width});
      }
    });
  }
  const int heads = static_cast<int>((texts.count + kBlockRows - 1) / kBlockRows);
  parallel_for(heads, workers, [&](int task, int worker) {
    const std::size_t first = std::size_t(task) * kBlockRows;
    const std::size_t rows = std::min<std::size_t>(kBlockRows, texts.count - first);
    classify(first, rows, texts.count, workspace, workspace.scratch[worker], out);
  });
}

}  // namespace bert_kd
