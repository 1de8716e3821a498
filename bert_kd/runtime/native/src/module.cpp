// The Python module: what crosses the border is checked here; the work is done with the GIL released.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "model.h"
#include "peak.h"
#include "thread_pool.h"
#include "tokenizer.h"

namespace py = pybind11;

namespace bert_kd {
namespace {

// An array of Value, or of what becomes one without loss.
template <class Value>
using Array = py::array_t<Value, py::array::c_style>;

// Gives up the GIL for as long as it lives.
class Unlocked {
 public:
  Unlocked() : thread_(PyEval_SaveThread()) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

  ~Unlocked() {
    try {
      PyEval_RestoreThread(thread_);
    } catch (...) {
      // Before 3.14, Python ends a daemon thread that comes back after the interpreter with
      // pthread_exit, which unwinds the stack of C++: neither this destructor nor those of Python's
      // objects, without the GIL, may be part of that. It sleeps until the process is gone.
      for (;;) pause();
    }
  }

 private:
  PyThreadState* thread_;
};

Sequences sequences(const Array<std::int32_t>& ids, const Array<std::int64_t>& offsets) {
  if (ids.ndim() != 1 || offsets.ndim() != 1 || offsets.size() < 1) {
    throw std::invalid_argument("ids and offsets must be of one dimension, offsets not empty");
  }
  const std::int64_t* const at = offsets.data();
  const std::size_t count = offsets.size() - 1;
  // The lengths are checked by the model; from these follows that all ids lie between.
  if (at[0] < 0 || at[count] > ids.size()) {
    throw std::invalid_argument("offsets reach beyond the ids");
  }
  return {ids.data(), at, count};
}

py::array_t<float> logits(const Model& model, const Array<std::int32_t>& ids,
                          const Array<std::int64_t>& offsets,
                          const std::optional<Array<std::int32_t>>& ids_b,
                          const std::optional<Array<std::int64_t>>& offsets_b, int threads) {
  if (ids_b.has_value() != offsets_b.has_value()) {
    throw std::invalid_argument("ids_b and offsets_b belong together");
  }
  const Sequences texts = sequences(ids, offsets);
  Sequences others{};
  if (ids_b) others = sequences(*ids_b, *offsets_b);
  py::array_t<float> out({py::ssize_t(texts.count), py::ssize_t(model.shape().classes)});
  float* const answers = out.mutable_data();
  {
    const Unlocked unlocked;
    model.logits(texts, ids_b ? &others : nullptr, threads, answers);
  }
  return out;
}

// The UTF-8 of strings that `texts` holds; null where one is no string, or half of a surrogate pair
// stands in it.
std::vector<std::string_view> utf8_of(const py::tuple& texts) {
  std::vector<std::string_view> views(texts.size());
  for (std::size_t row = 0; row < views.size(); ++row) {
    PyObject* const text = PyTuple_GET_ITEM(texts.ptr(), row);
    Py_ssize_t size = 0;
    const char* const data = PyUnicode_Check(text) ? PyUnicode_AsUTF8AndSize(text, &size) : nullptr;
    if (data) {
      views[row] = {data, static_cast<std::size_t>(size)};
    } else {
      PyErr_Clear();
    }
  }
  return views;
}

TokenizerRules::Kind kind_of(const std::string& name) {
  if (name == "wordpiece") return TokenizerRules::Kind::kWordpiece;
  if (name == "words") return TokenizerRules::Kind::kWords;
  if (name == "bpe") return TokenizerRules::Kind::kBpe;
  throw std::invalid_argument("kind is " + name + ": use wordpiece, words or bpe");
}

std::unique_ptr<Tokenizer> make_tokenizer(
    const std::string& kind, const py::bytes& pieces, std::int32_t unknown, const py::bytes& merges,
    std::vector<std::pair<std::string, std::int32_t>> added, bool chinese, bool strip_accents,
    bool lowercase, std::size_t longest_word, std::size_t max_tokens, bool keep_end) {
  TokenizerRules rules;
  rules.kind = kind_of(kind);
  rules.normalizer = {chinese, strip_accents, lowercase};
  rules.pieces = pieces;
  rules.merges = merges;
  rules.added = std::move(added);
  rules.unknown = unknown;
  rules.longest_word = longest_word;
  rules.max_tokens = max_tokens;
  rules.keep_end = keep_end;
  return std::make_unique<Tokenizer>(std::move(rules));
}

// Token ids of many texts, and the positions of those that are handed back.
struct Encoded {
  std::vector<std::int32_t> ids;
  std::vector<std::int64_t> offsets;
  std::vector<std::int64_t> others;

  Sequences sequences() const { return {ids.data(), offsets.data(), offsets.size() - 1}; }
};

// A text that is handed back has the ids of `stand_in`.
Encoded tokenize(const Tokenizer& tokenizer, const std::vector<std::string_view>& texts,
                 const std::vector<std::int32_t>& stand_in, int threads) {
  constexpr std::size_t kTextsPerTask = 256;
  struct Part {
    std::vector<std::int32_t> ids;
    std::vector<std::int64_t> lengths;
    std::vector<std::int64_t> others;
  };
  std::vector<Part> parts((texts.size() + kTextsPerTask - 1) / kTextsPerTask);
  parallel_for(static_cast<int>(parts.size()), threads, [&](int task, int) {
    Part& part = parts[task];
    const std::size_t first = task * kTextsPerTask;
    const std::size_t last = std::min(first + kTextsPerTask, texts.size());
    part.lengths.reserve(last - first);
    for (std::size_t row = first; row < last; ++row) {
      const std::size_t before = part.ids.size();
      if (!texts[row].data() || !tokenizer.encode(texts[row], part.ids)) {
        part.others.push_back(static_cast<std::int64_t>(row));
        part.ids.insert(part.ids.end(), stand_in.begin(), stand_in.end());
      }
      part.lengths.push_back(part.ids.size() - before);
    }
  });
  Encoded all;
  std::size_t count = 0;
  for (const Part& part : parts) count += part.ids.size();
  all.ids.reserve(count);
  all.offsets.reserve(texts.size() + 1);
  all.offsets.push_back(0);
  for (const Part& part : parts) {
    all.ids.insert(all.ids.end(), part.ids.begin(), part.ids.end());
    all.others.insert(all.others.end(), part.others.begin(), part.others.end());
    for (const std::int64_t length : part.lengths) {
      all.offsets.push_back(all.offsets.back() + length);
    }
  }
  return all;
}

py::tuple encode(const Tokenizer& tokenizer, const py::sequence& texts, int threads) {
  const py::tuple held(texts);  // another thread may change the list meanwhile
  const std::vector<std::string_view> views = utf8_of(held);
  Encoded all;
  {
    const Unlocked unlocked;
    all = tokenize(tokenizer, views, {}, threads);
  }
  return py::make_tuple(py::array_t<std::int32_t>(all.ids.size(), all.ids.data()),
                        py::array_t<std::int64_t>(all.offsets.size(), all.offsets.data()),
                        all.others);
}

py::tuple answer(const Model& model, const Tokenizer& tokenizer, const py::sequence& texts,
                 const std::optional<py::sequence>& texts_b, int threads) {
  const py::tuple held(texts), held_b = texts_b ? py::tuple(*texts_b) : py::tuple();
  const std::vector<std::string_view> views = utf8_of(held), views_b = utf8_of(held_b);
  py::array_t<float> out({py::ssize_t(views.size()), py::ssize_t(model.shape().classes)});
  float* const answers = out.mutable_data();
  std::vector<std::int64_t> others;
  {
    const Unlocked unlocked;
    // What is handed back is answered with the rest, as some token, and once more by the caller.
    const std::vector<std::int32_t> stand_in{0};
    Encoded all = tokenize(tokenizer, views, stand_in, threads);
    others = std::move(all.others);
    const Sequences sequences = all.sequences();
    if (texts_b) {
      const Encoded all_b = tokenize(tokenizer, views_b, stand_in, threads);
      const Sequences sequences_b = all_b.sequences();
      model.logits(sequences, &sequences_b, threads, answers);
      std::vector<std::int64_t> either;
      std::set_union(others.begin(), others.end(), all_b.others.begin(), all_b.others.end(),
                     std::back_inserter(either));
      others = std::move(either);
    } else {
      model.logits(sequences, nullptr, threads, answers);
    }
  }
  return py::make_tuple(out, others);
}

Precision precision_of(const std::string& name) {
  if (name == "fp32") return Precision::kFp32;
  if (name == "bf16") return Precision::kBf16;
  if (name == "int8") return Precision::kInt8;
  throw std::invalid_argument("precision is " + name + ": use fp32, bf16 or int8");
}

py::tuple names_of_instruction_sets() {
  py::list names;
  for (const char* const* name = instruction_sets(); *name; ++name) names.append(*name);
  return names;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "The compiled part of the native runtime.";

  py::class_<TensorFile, std::shared_ptr<TensorFile>>(module, "TensorFile")
      .def(py::init([](const std::string& path) {
             const Unlocked unlocked;
             return std::make_shared<TensorFile>(path);
           }),
           py::arg("path"))
      .def_property_readonly("metadata", &TensorFile::metadata)
      .def(
          "read_bytes",
          [](const TensorFile& file, const std::string& name) {
            return py::bytes(file.bytes(name));
          },
          py::arg("name"));

  py::class_<Model>(module, "Model")
      .def(py::init([](std::shared_ptr<TensorFile> file,
                       const std::optional<std::string>& instruction_set) {
             const Unlocked unlocked;
             return std::make_unique<Model>(std::move(file),
                                            instruction_set ? instruction_set->c_str() : nullptr);
           }),
           py::arg("file").none(false), py::arg("instruction_set") = py::none())
      .def(py::init([](const std::string& path, const std::optional<std::string>& instruction_set) {
             const Unlocked unlocked;
             return std::make_unique<Model>(std::make_shared<TensorFile>(path),
                                            instruction_set ? instruction_set->c_str() : nullptr);
           }),
           py::arg("path"), py::arg("instruction_set") = py::none())
      .def_property_readonly("precision", &Model::precision)
      .def_property_readonly("instruction_set", &Model::instruction_set)
      .def_property_readonly("vocabulary",
                             [](const Model& model) { return model.shape().vocabulary; })
      .def_property_readonly("classes", [](const Model& model) { return model.shape().classes; })
      .def_property_readonly("pair", [](const Model& model) { return model.shape().pair; })
      .def("logits", &logits, py::arg("ids"), py::arg("offsets"), py::arg("ids_b") = py::none(),
           py::arg("offsets_b") = py::none(), py::arg("threads") = 1)
      .def("answer", &answer, py::arg("tokenizer"), py::arg("texts"),
           py::arg("texts_b") = py::none(), py::arg("threads") = 1);

  py::class_<Tokenizer>(module, "Tokenizer")
      .def(py::init(&make_tokenizer), py::kw_only(), py::arg("kind"), py::arg("pieces"),
           py::arg("unknown"), py::arg("merges"), py::arg("added"), py::arg("chinese"),
           py::arg("strip_accents"), py::arg("lowercase"), py::arg("longest_word"),
           py::arg("max_tokens"), py::arg("keep_end"))
      .def_property_readonly("size", &Tokenizer::size)
      .def("encode", &encode, py::arg("texts"), py::arg("threads") = 1);

  module.def("instruction_sets", &names_of_instruction_sets);
  module.def(
      "measure_peak",
      [](const std::string& precision, double seconds) {
        const Precision kind = precision_of(precision);
        const Unlocked unlocked;
        return measure_peak(kind, seconds);
      },
      py::arg("precision"), py::arg("seconds") = 0.2);
  module.def(
      "measure_reading",
      [](const std::string& precision, std::ptrdiff_t bytes, double seconds) {
        const Precision kind = precision_of(precision);
        if (bytes < 1 || bytes > (std::ptrdiff_t{1} << 30)) {
          throw std::invalid_argument("bytes must be 1 to 2**30");
        }
        const Unlocked unlocked;
        return measure_reading(kind, bytes, seconds);
      },
      py::arg("precision"), py::arg("bytes"), py::arg("seconds") = 0.2);
}

}  // namespace bert_kd
