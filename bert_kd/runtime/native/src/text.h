// Reading UTF-8: code points, their properties, and the clitics of English at an apostrophe.

#pragma once

#include <cstddef>
#include <cstdint>

#include "unicode_tables.h"

namespace bert_kd {

constexpr std::uint32_t kInvalid = 0xFFFFFFFF;

inline bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

// Returns the code point at `at` < `end` and moves `at` past it; kInvalid where there is no UTF-8.
inline std::uint32_t decode(const char*& at, const char* end) {
  const auto byte = [&](int index) { return std::uint32_t{static_cast<unsigned char>(at[index])}; };
  const std::uint32_t lead = byte(0);
  if (lead < 0x80) {
    ++at;
    return lead;
  }
  const int size = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || end - at < size) return kInvalid;
  std::uint32_t code = lead & (0x7F >> size);
  for (int index = 1; index < size; ++index) {
    if (!is_continuation(at[index])) return kInvalid;
    code = code << 6 | (byte(index) & 0x3F);
  }
  constexpr std::uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  if (code < kLeast[size] || code >= unicode::kLimit || (code >= 0xD800 && code < 0xE000)) {
    return kInvalid;
  }
  at += size;
  return code;
}

// Writes a code point and returns where the next one goes: 4 bytes on at most.
inline char* encode(std::uint32_t code, char* out) {
  const auto put = [&out](std::uint32_t byte) { *out++ = static_cast<char>(byte); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6);
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  }
  return out;
}

// The flags of the code point at `at` < `end`, which is moved past it; 0 and one byte on where there
// is no UTF-8.
inline std::uint8_t flags_at(const char*& at, const char* end) {
  const std::uint32_t code = decode(at, end);
  if (code != kInvalid) return unicode::record_of(code).flags;
  ++at;
  return 0;
}

// Moves from `at` > `begin` to the start of the code point before it.
inline const char* step_back(const char* begin, const char* at) {
  do {
    --at;
  } while (at > begin && is_continuation(*at));
  return at;
}

inline bool word_at(const char* at, const char* end) {
  return at < end && (flags_at(at, end) & unicode::kWord);
}

// Whether letters of clitics are compared with or without regard to case.
enum class Case { kSame, kAny };

inline char letter(const char* at, const char* end, Case letters) {
  if (at >= end) return 0;
  return letters == Case::kAny && *at >= 'A' && *at <= 'Z' ? static_cast<char>(*at | 0x20) : *at;
}

// The bytes of 's, 'd, 'm, 're, 've or 'll at `apostrophe`, which a word's end must follow, or 0.
inline std::size_t clitic_bytes(const char* apostrophe, const char* end, Case letters) {
  const char first = letter(apostrophe + 1, end, letters);
  const char second = letter(apostrophe + 2, end, letters);
  const bool one = first == 's' || first == 'd' || first == 'm';
  const bool two = ((first == 'r' || first == 'v') && second == 'e') ||
                   (first == 'l' && second == 'l');
  const std::size_t bytes = one ? 2 : two ? 3 : 0;
  return bytes && !word_at(apostrophe + bytes, end) ? bytes : 0;
}

// Whether n't stands around `apostrophe`, and a word's end after it.
inline bool is_negation(const char* begin, const char* apostrophe, const char* end, Case letters) {
  return apostrophe > begin && letter(apostrophe - 1, end, letters) == 'n' &&
         letter(apostrophe + 1, end, letters) == 't' && !word_at(apostrophe + 2, end);
}

}  // namespace bert_kd
