// The normalisers before a student's vocabulary: see bert_kd/student/vocabulary.py.

#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "unicode_tables.h"

namespace bert_kd {

// A normalised text and what is needed to make it, kept by its owner so that memory is reused.
class NormalText {
 public:
  // UTF-8 without NUL, then one NUL, then kMargin bytes that may be read and mean nothing.
  const char* begin() const { return bytes_.get(); }
  const char* end() const { return end_; }

  static constexpr std::size_t kMargin = 8;

 private:
  friend class Normalizer;

  std::string unified_;
  std::unique_ptr<char[]> bytes_;
  std::size_t capacity_ = 0;
  char* end_ = nullptr;
};

class Normalizer {
 public:
  // The options of the BERT normaliser; clean_text is always done.
  struct Options {
    bool chinese;
    bool strip_accents;
    bool lowercase;
  };

  explicit Normalizer(const Options& options);

  // Makes typed and Penn-Treebank-tokenised English meet, then does what the BERT normaliser does.
  // False where the text is no UTF-8, or where it is not certain what `tokenizers` does with it.
  bool normalize(std::string_view text, NormalText& out) const;

 private:
  bool append(std::string_view text, NormalText& out) const;
  char* put(std::uint32_t code, const unicode::Record& record, char* out) const;
  char* put_lowered(std::uint32_t code, const unicode::Record& record, char* out) const;

  Options options_;
  std::array<char, 128> ascii_;  // what becomes of each ASCII character, NUL where it is removed
};

}  // namespace bert_kd
