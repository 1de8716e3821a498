#include "normalizer.h"

#include <cstring>

#include "text.h"

namespace bert_kd {
namespace {

using unicode::kReplacements;
using unicode::kSame;
using unicode::Record;
using unicode::record_of;

// Bytes that a byte becomes at most; make_unicode_tables.py checks it.
constexpr std::size_t kGrowth = 3;

// The syllables of Hangul and the letters they are made of: the Unicode standard, section 3.12.
constexpr std::uint32_t kSyllables = 0xAC00, kSyllablesEnd = 0xD7A4;
constexpr std::uint32_t kLeads = 0x1100, kVowels = 0x1161, kTrails = 0x11A7;
constexpr std::uint32_t kVowelCount = 21, kTrailCount = 28;

struct Quote {
  enum class Kind { kNone, kApostrophe, kSingle, kDouble };
  Kind kind;
  int bytes;
};

// The quotation mark at `at` < `end`.
Quote quote_at(const char* at, const char* end) {
  const auto byte = [=](int index) {
    return end - at > index ? static_cast<unsigned char>(at[index]) : 0;
  };
  switch (byte(0)) {
    case '\'':
      return {Quote::Kind::kApostrophe, 1};
    case '`':
      return {Quote::Kind::kSingle, 1};
    case 0xC2:  // ´
      if (byte(1) == 0xB4) return {Quote::Kind::kSingle, 2};
      break;
    case 0xE2:
      if (byte(1) != 0x80) break;
      if (byte(2) == 0x98 || byte(2) == 0x99) return {Quote::Kind::kSingle, 3};  // ‘ ’
      if (byte(2) >= 0x9C && byte(2) <= 0x9E) return {Quote::Kind::kDouble, 3};  // “ ” „
      break;
  }
  return {Quote::Kind::kNone, 1};
}

// Does the first two replacements: [‘’`´]{2}|''|[“”„] become ", then [‘’`´] become '.
void unify_quotes(std::string_view text, std::string& out) {
  out.resize(text.size());
  char* to = out.data();
  const char* const end = text.data() + text.size();
  for (const char* at = text.data(); at < end;) {
    const Quote quote = quote_at(at, end);
    const char* const after = at + quote.bytes;
    if (quote.kind == Quote::Kind::kNone) {
      *to++ = *at;
      at = after;
      continue;
    }
    const Quote next = after < end ? quote_at(after, end) : Quote{Quote::Kind::kNone, 0};
    const bool pair = quote.kind != Quote::Kind::kDouble && next.kind == quote.kind;
    *to++ = pair || quote.kind == Quote::Kind::kDouble ? '"' : '\'';
    at = pair ? after + next.bytes : after;
  }
  out.resize(to - out.data());
}

bool may_start_quote(char byte) {
  switch (static_cast<unsigned char>(byte)) {
    case '\'':
    case '`':
    case 0xC2:
    case 0xE2:
      return true;
    default:
      return false;
  }
}

// The start of the whitespace before a clitic at `clitic` that follows a word; `clitic` itself where
// there is none: (?<=\w)\s+ before a clitic.
const char* space_before(const char* begin, const char* clitic) {
  const char* start = clitic;
  while (start > begin) {
    const char* const before = step_back(begin, start);
    const char* at = before;
    const std::uint8_t flags = flags_at(at, start);
    if (flags & unicode::kSpace) {
      start = before;
    } else {
      return flags & unicode::kWord ? start : clitic;
    }
  }
  return clitic;
}

}  // namespace

Normalizer::Normalizer(const Options& options) : options_(options) {
  for (unsigned code = 0; code < ascii_.size(); ++code) {
    const Record& record = record_of(code);
    char buffer[4];
    put_lowered(code, record, buffer);
    ascii_[code] = record.flags & unicode::kRemoved ? '\0'
                   : record.flags & unicode::kSpace ? ' '
                                                    : buffer[0];
  }
}

bool Normalizer::normalize(std::string_view text, NormalText& out) const {
  const std::size_t needed = kGrowth * text.size() + 1 + NormalText::kMargin;
  if (needed > out.capacity_) {
    out.bytes_.reset(new char[needed]);
    out.capacity_ = needed;
  }
  out.end_ = out.bytes_.get();

  std::size_t plain = 0;
  while (plain < text.size() && !may_start_quote(text[plain])) ++plain;
  if (plain < text.size()) {
    unify_quotes(text, out.unified_);
    text = out.unified_;
  }

  const char* const begin = text.data();
  const char* const end = begin + text.size();
  const char* kept = begin;
  for (const char* at = begin + plain; at < end; ++at) {
    at = static_cast<const char*>(std::memchr(at, '\'', end - at));
    if (!at) break;
    // U+017F is another s where case does not count; who writes it is answered by `tokenizers`.
    if (end - at > 2 && std::memcmp(at + 1, "\xC5\xBF", 2) == 0) return false;
    const bool negation = is_negation(begin, at, end, Case::kAny);
    if (!negation && !clitic_bytes(at, end, Case::kAny)) continue;
    const char* const clitic = negation ? at - 1 : at;
    const char* const space = space_before(begin, clitic);
    if (space == clitic) continue;
    if (!append({kept, static_cast<std::size_t>(space - kept)}, out)) return false;
    kept = clitic;
  }
  if (!append({kept, static_cast<std::size_t>(end - kept)}, out)) return false;
  *out.end_ = '\0';
  return true;
}

// Does what the BERT normaliser does to a part of the text; no rule of it looks at neighbours.
bool Normalizer::append(std::string_view text, NormalText& out) const {
  const char* at = text.data();
  const char* const end = at + text.size();
  char* to = out.end_;
  while (at < end) {
    const auto byte = static_cast<unsigned char>(*at);
    if (byte < 0x80) {
      const char mapped = ascii_[byte];
      *to = mapped;
      to += mapped != '\0';
      ++at;
      continue;
    }
    const std::uint32_t code = decode(at, end);
    if (code == kInvalid) return false;
    const Record& record = record_of(code);
    if (record.flags & unicode::kDoubtful) return false;
    if (record.flags & unicode::kRemoved) continue;
    if (record.flags & unicode::kSpace) {
      *to++ = ' ';
    } else if (options_.chinese && (record.flags & unicode::kChinese)) {
      *to++ = ' ';
      to = put(code, record, to);
      *to++ = ' ';
    } else {
      to = put(code, record, to);
    }
  }
  out.end_ = to;
  return true;
}

char* Normalizer::put(std::uint32_t code, const Record& record, char* out) const {
  if (!options_.strip_accents) return put_lowered(code, record, out);
  if (code >= kSyllables && code < kSyllablesEnd) {
    const std::uint32_t index = code - kSyllables;
    const std::uint32_t trail = index % kTrailCount;
    out = encode(kLeads + index / (kVowelCount * kTrailCount), out);
    out = encode(kVowels + index / kTrailCount % kVowelCount, out);
    return trail ? encode(kTrails + trail, out) : out;
  }
  if (record.stripped_bytes == kSame) return put_lowered(code, record, out);
  const char* at = reinterpret_cast<const char*>(kReplacements) + record.stripped_at;
  const char* const end = at + record.stripped_bytes;
  while (at < end) {
    const std::uint32_t part = decode(at, end);
    out = put_lowered(part, record_of(part), out);
  }
  return out;
}

char* Normalizer::put_lowered(std::uint32_t code, const Record& record, char* out) const {
  if (!options_.lowercase || record.lowered_bytes == kSame) return encode(code, out);
  std::memcpy(out, kReplacements + record.lowered_at, record.lowered_bytes);
  return out + record.lowered_bytes;
}

}  // namespace bert_kd
