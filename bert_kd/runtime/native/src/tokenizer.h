// From texts to token ids, exactly as the student's `tokenizers` tokenizer gives them.
//
// Only what is certain is answered here; any other text is handed back for `tokenizers` itself.
// What a tokenizer.json says is read, and refused where it is none of these rules, by
// bert_kd/runtime/native/tokenizer.py.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "normalizer.h"
#include "piece_table.h"

namespace bert_kd {

struct TokenizerRules {
  enum class Kind { kWordpiece, kWords, kBpe };

  Kind kind = Kind::kWordpiece;
  Normalizer::Options normalizer{};
  std::string pieces;  // of all ids, in their order, each with a NUL behind it
  std::string merges;  // bpe: the first to be done first, each as the ids left, right and merged,
                       // of 4 bytes, the lowest first
  std::vector<std::pair<std::string, std::int32_t>> added;  // found in the text as it is written
  std::int32_t unknown = 0;
  std::size_t longest_word = 0;  // wordpiece: characters of a word that is not unknown at once
  std::size_t max_tokens = 0;    // 0: no limit
  bool keep_end = false;         // of a text that is too long
};

class Tokenizer {
 public:
  // Throws std::invalid_argument where an id can't be one, or a piece is empty.
  explicit Tokenizer(TokenizerRules rules);
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Appends the ids of the text, `unknown` where it has no tokens. False where the text is handed
  // back: `ids` is as before. Safe to call from several threads.
  bool encode(std::string_view utf8, std::vector<std::int32_t>& ids) const;

  // One more than the largest id.
  std::int32_t size() const { return size_; }

 private:
  struct Workspace;
  using Ids = std::vector<std::int32_t>;

  bool append_text(std::string_view text, std::size_t enough, Workspace& work, Ids& ids) const;
  void append_word(std::string_view word, Workspace& work, Ids& ids) const;
  void spell(std::string_view word, Workspace& work, Ids& ids) const;
  void spell_wordpiece(std::string_view word, Ids& ids) const;
  void spell_bpe(std::string_view word, Workspace& work, Ids& ids) const;
  std::pair<std::size_t, const std::pair<std::string, std::int32_t>*> find_added(
      std::string_view text) const;

  const TokenizerRules rules_;
  Normalizer normalizer_;
  PieceTable starts_;         // pieces at the start of a word; their bytes are those of rules_
  PieceTable continuations_;  // and within one, without ##
  struct Ranked {
    std::int32_t rank;
    std::int32_t merged;
  };
  std::unordered_map<std::uint64_t, Ranked> merges_;
  std::int32_t size_ = 0;
  std::string added_starts_;  // the bytes that added tokens start with
  std::uint32_t number_;      // no other tokenizer of this process has it
};

}  // namespace bert_kd
