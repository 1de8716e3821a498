#include "tokenizer.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "text.h"

namespace bert_kd {
namespace {

using Kind = TokenizerRules::Kind;

// Texts beyond this are handed back: `tokenizers` searches with limits of its own, and the memory
// that a thread keeps stays bounded.
constexpr std::size_t kLongestText = std::size_t{1} << 20;
constexpr std::string_view kPrefix = "##";

// --- words of a normalised text ------------------------------------------------------------------

// What the next step over a normalised text goes by; kWide: the code point's record tells.
enum class Step : std::uint8_t { kWord, kSpace, kOther, kWide, kEnd };
using Steps = std::array<Step, 256>;

// `apart`: the flag of what is a word of its own even beside letters.
Steps make_steps(std::uint8_t apart) {
  Steps steps;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const std::uint8_t flags = byte < 0x80 ? unicode::record_of(byte).flags : 0;
    steps[byte] = byte >= 0x80                 ? Step::kWide
                  : byte == 0                  ? Step::kEnd
                  : flags & unicode::kSpace    ? Step::kSpace
                  : flags & apart              ? Step::kOther
                                               : Step::kWord;
  }
  return steps;
}

// Splits at whitespace and around punctuation: BertPreTokenizer. `emit` takes a word and returns
// whether to go on.
template <class Emit>
void split_bert(const NormalText& text, const Emit& emit) {
  static const Steps steps = make_steps(unicode::kPunctuation);
  const auto view = [](const char* from, const char* to) {
    return std::string_view(from, static_cast<std::size_t>(to - from));
  };
  const char* word = text.begin();
  const char* at = word;
  for (;;) {
    Step step = steps[static_cast<unsigned char>(*at)];
    if (step == Step::kWord) {
      ++at;
      continue;
    }
    const char* next = at + 1;
    if (step == Step::kWide) {
      next = at;
      const std::uint8_t flags = flags_at(next, text.end());
      if (!(flags & (unicode::kSpace | unicode::kPunctuation))) {
        at = next;
        continue;
      }
      step = flags & unicode::kSpace ? Step::kSpace : Step::kOther;
    }
    if (at > word && !emit(view(word, at))) return;
    if (step == Step::kEnd) return;
    if (step == Step::kOther && !emit(view(at, next))) return;
    word = at = next;
  }
}

// Splits as the regular expressions _WORD and, with `han_apart`, _RUN of vocabulary.py find words.
template <class Emit>
void split_words(const NormalText& text, bool han_apart, const Emit& emit) {
  const char* const end = text.end();
  const std::uint8_t han = han_apart ? unicode::kHan : 0;
  const std::uint8_t letter = han_apart ? unicode::kLetter : unicode::kWord;
  const auto view = [](const char* from, const char* to) {
    return std::string_view(from, static_cast<std::size_t>(to - from));
  };
  const auto end_of_run = [end](const char* at, std::uint8_t flag) {
    for (const char* next = at; at < end && (flags_at(next, end) & flag); at = next) {
    }
    return at;
  };
  for (const char* at = text.begin(); at < end;) {
    const char* next = at;
    const std::uint8_t flags = flags_at(next, end);
    if (flags & unicode::kSpace) {
      at = next;
      continue;
    }
    const char* stop = next;
    if (flags & han) {
      stop = end_of_run(next, han);
    } else if (flags & letter) {
      stop = end_of_run(next, letter);
      if (stop < end && *stop == '\'' && is_negation(at, stop, end, Case::kSame)) {
        if (stop - 1 > at && !emit(view(at, stop - 1))) return;  // "do" of "don't"
        at = stop - 1;
        stop += 2;
      }
    } else if (*at == '\'') {
      stop = std::max(next, at + clitic_bytes(at, end, Case::kSame));
    }
    if (!emit(view(at, stop))) return;
    at = stop;
  }
}

// --- a thread's memory ---------------------------------------------------------------------------

// The ids of one word for one tokenizer, in one line of the CPU's cache.
struct alignas(64) CachedWord {
  static constexpr std::size_t kBytes = 34;
  static constexpr std::size_t kIds = 6;

  std::uint32_t tokenizer = 0;  // its number; 0 where nothing is kept
  std::uint8_t size;
  std::uint8_t count;
  char word[kBytes];
  std::int32_t ids[kIds];
};
static_assert(sizeof(CachedWord) == 64, "a cached word is one line of the CPU's cache");

// Words kept, of which the last one stays where two meet: a mebibyte, so that few do. What is touched
// are the lines of the words that occur.
constexpr std::size_t kCachedWords = 16384;

struct Symbol {
  std::int32_t id;
  std::int32_t before;  // places of the neighbours, -1 where there is none
  std::int32_t after;
  bool gone;
};

struct Candidate {
  std::int32_t rank;
  std::int32_t place;  // of the left symbol
  std::int32_t merged;
};

// Orders a heap so that its front is the first merge to be done.
bool is_later(const Candidate& one, const Candidate& other) {
  return one.rank != other.rank ? one.rank > other.rank : one.place > other.place;
}

std::uint64_t pair_of(std::int32_t left, std::int32_t right) {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
}

std::uint32_t next_number() {
  static std::atomic<std::uint32_t> last{0};
  return ++last;
}

}  // namespace

struct Tokenizer::Workspace {
  NormalText normal;
  std::vector<CachedWord> cache = std::vector<CachedWord>(kCachedWords);
  std::vector<Symbol> symbols;
  std::vector<Candidate> candidates;
};

Tokenizer::Tokenizer(TokenizerRules rules)
    : rules_(std::move(rules)), normalizer_(rules_.normalizer), number_(next_number()) {
  const std::string_view pieces = rules_.pieces;
  if (pieces.size() > INT32_MAX) throw std::invalid_argument("the vocabulary is too large");
  if (!pieces.empty() && pieces.back() != '\0') {
    throw std::invalid_argument("the vocabulary's last piece does not end");
  }
  size_ = static_cast<std::int32_t>(std::count(pieces.begin(), pieces.end(), '\0'));
  const auto check = [count = size_](std::int32_t id) {
    if (id < 0 || id >= count) throw std::invalid_argument("an id is not of the vocabulary");
    return id;
  };
  check(rules_.unknown);
  starts_.reserve(size_);
  continuations_.reserve(size_);
  const char* at = pieces.data();
  for (std::int32_t id = 0; id < size_; ++id) {
    const std::string_view piece(at);
    if (piece.empty()) throw std::invalid_argument("a piece of the vocabulary is empty");
    at += piece.size() + 1;
    starts_.add(piece, id);
    if (piece.size() > kPrefix.size() && piece.substr(0, kPrefix.size()) == kPrefix) {
      continuations_.add(piece.substr(kPrefix.size()), id);
    }
  }
  std::int32_t merge[3];  // left, right, merged
  if (rules_.merges.size() % sizeof merge != 0 || rules_.merges.size() > INT32_MAX) {
    throw std::invalid_argument("the merges are no triples of ids");
  }
  const auto merges = static_cast<std::int32_t>(rules_.merges.size() / sizeof merge);
  merges_.reserve(merges);
  for (std::int32_t rank = 0; rank < merges; ++rank) {
    std::memcpy(merge, rules_.merges.data() + rank * sizeof merge, sizeof merge);
    merges_[pair_of(check(merge[0]), check(merge[1]))] = {rank, check(merge[2])};
  }
  for (const auto& [token, id] : rules_.added) {
    if (token.empty()) throw std::invalid_argument("an added token is empty");
    if (id < 0 || id == INT32_MAX) throw std::invalid_argument("an added token's id can't be one");
    size_ = std::max(size_, id + 1);
    if (added_starts_.find(token[0]) == std::string::npos) added_starts_ += token[0];
  }
}

bool Tokenizer::encode(std::string_view utf8, Ids& ids) const {
  if (utf8.size() > kLongestText) return false;
  thread_local Workspace work;
  const std::size_t first = ids.size();
  // Where the end is cut off, what lies behind need not be found.
  const bool stops = rules_.max_tokens && !rules_.keep_end;
  const std::size_t enough =
      stops ? first + std::min(rules_.max_tokens, SIZE_MAX - first) : SIZE_MAX;
  for (std::string_view rest = utf8; !rest.empty() && ids.size() < enough;) {
    const auto [at, added] = find_added(rest);
    if (!append_text(rest.substr(0, at), enough, work, ids)) {
      ids.resize(first);
      return false;
    }
    if (!added) break;
    ids.push_back(added->second);
    rest.remove_prefix(at + added->first.size());
  }
  const std::size_t found = ids.size() - first;
  if (found == 0) ids.push_back(rules_.unknown);
  if (rules_.max_tokens && found > rules_.max_tokens) {
    if (rules_.keep_end) ids.erase(ids.begin() + first, ids.end() - rules_.max_tokens);
    ids.resize(first + rules_.max_tokens);
  }
  return true;
}

// Finds the first added token, of several at one place the longest: its place (or the text's end)
// and itself (or null).
std::pair<std::size_t, const std::pair<std::string, std::int32_t>*> Tokenizer::find_added(
    std::string_view text) const {
  if (added_starts_.empty()) return {text.size(), nullptr};
  for (std::size_t at = 0;; ++at) {
    at = added_starts_.size() == 1 ? text.find(added_starts_[0], at)
                                   : text.find_first_of(added_starts_, at);
    if (at == std::string_view::npos) return {text.size(), nullptr};
    const std::pair<std::string, std::int32_t>* longest = nullptr;
    for (const auto& added : rules_.added) {
      if (text.compare(at, added.first.size(), added.first) == 0 &&
          (!longest || added.first.size() > longest->first.size())) {
        longest = &added;
      }
    }
    if (longest) return {at, longest};
  }
}

// Appends the ids of a text without added tokens, at least until there are `enough`.
bool Tokenizer::append_text(std::string_view text, std::size_t enough, Workspace& work,
                            Ids& ids) const {
  if (!normalizer_.normalize(text, work.normal)) return false;
  const auto emit = [&](std::string_view word) {
    append_word(word, work, ids);
    return ids.size() < enough;
  };
  if (rules_.kind == Kind::kWordpiece) {
    split_bert(work.normal, emit);
  } else {
    split_words(work.normal, rules_.kind == Kind::kBpe, emit);
  }
  return true;
}

void Tokenizer::append_word(std::string_view word, Workspace& work, Ids& ids) const {
  if (word.size() > CachedWord::kBytes) return spell(word, work, ids);
  CachedWord& known = work.cache[hash_of(word, number_) % kCachedWords];
  if (known.tokenizer == number_ && known.size == word.size() &&
      std::memcmp(known.word, word.data(), word.size()) == 0) {
    ids.insert(ids.end(), known.ids, known.ids + known.count);
    return;
  }
  const std::size_t first = ids.size();
  spell(word, work, ids);
  const std::size_t count = ids.size() - first;
  if (count > CachedWord::kIds) return;
  known.tokenizer = number_;
  known.size = static_cast<std::uint8_t>(word.size());
  known.count = static_cast<std::uint8_t>(count);
  std::memcpy(known.word, word.data(), word.size());
  std::copy(ids.begin() + first, ids.end(), known.ids);
}

void Tokenizer::spell(std::string_view word, Workspace& work, Ids& ids) const {
  if (rules_.kind == Kind::kBpe) return spell_bpe(word, work, ids);
  if (rules_.kind == Kind::kWordpiece) return spell_wordpiece(word, ids);
  const std::int32_t id = starts_.find(word);
  ids.push_back(id == PieceTable::kNone ? rules_.unknown : id);
}

// The longest piece first, then the longest that continues it, and so on; else the word is unknown.
void Tokenizer::spell_wordpiece(std::string_view word, Ids& ids) const {
  const std::size_t first = ids.size();
  const std::size_t characters =
      word.size() - std::count_if(word.begin(), word.end(), is_continuation);
  if (characters > rules_.longest_word) {
    ids.push_back(rules_.unknown);
    return;
  }
  for (std::string_view rest = word; !rest.empty();) {
    const PieceTable& table = rest.size() == word.size() ? starts_ : continuations_;
    std::string_view piece = rest.substr(0, std::min(rest.size(), table.longest()));
    std::int32_t id = PieceTable::kNone;
    while (!piece.empty()) {
      const bool whole = piece.size() == rest.size() || !is_continuation(rest[piece.size()]);
      if (whole && (id = table.find(piece)) != PieceTable::kNone) break;
      piece.remove_suffix(1);
    }
    if (id == PieceTable::kNone) {
      ids.resize(first);
      ids.push_back(rules_.unknown);
      return;
    }
    ids.push_back(id);
    rest.remove_prefix(piece.size());
  }
}

// Starts with characters and does the first of all possible merges, the leftmost of these, until
// none is left.
void Tokenizer::spell_bpe(std::string_view word, Workspace& work, Ids& ids) const {
  std::vector<Symbol>& symbols = work.symbols;
  std::vector<Candidate>& candidates = work.candidates;
  symbols.clear();
  candidates.clear();
  const char* const end = word.data() + word.size();
  for (const char* at = word.data(); at < end;) {
    const char* const start = at;
    flags_at(at, end);
    const PieceTable& table = symbols.empty() ? starts_ : continuations_;
    const std::int32_t id = table.find({start, static_cast<std::size_t>(at - start)});
    const auto place = static_cast<std::int32_t>(symbols.size());
    symbols.push_back({id == PieceTable::kNone ? rules_.unknown : id, place - 1,
                       at < end ? place + 1 : -1, false});
  }
  const auto consider = [&](std::int32_t place) {
    if (place < 0 || symbols[place].after < 0) return;
    const auto merge = merges_.find(pair_of(symbols[place].id, symbols[symbols[place].after].id));
    if (merge == merges_.end()) return;
    candidates.push_back({merge->second.rank, place, merge->second.merged});
    std::push_heap(candidates.begin(), candidates.end(), is_later);
  };
  for (std::size_t place = 0; place + 1 < symbols.size(); ++place) consider(place);
  while (!candidates.empty()) {
    std::pop_heap(candidates.begin(), candidates.end(), is_later);
    const Candidate candidate = candidates.back();
    candidates.pop_back();
    Symbol& left = symbols[candidate.place];
    if (left.gone || left.after < 0) continue;
    Symbol& right = symbols[left.after];
    // What stood here may have been merged since, into what gives another token or none.
    const auto merge = merges_.find(pair_of(left.id, right.id));
    if (merge == merges_.end() || merge->second.merged != candidate.merged) continue;
    left.id = candidate.merged;
    left.after = right.after;
    right.gone = true;
    if (right.after >= 0) symbols[right.after].before = candidate.place;
    consider(left.before);
    consider(candidate.place);
  }
  for (const Symbol& symbol : symbols) {
    if (!symbol.gone) ids.push_back(symbol.id);
  }
}

}  // namespace bert_kd
