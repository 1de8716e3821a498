// What the `tokenizers` library does to every code point: see make_unicode_tables.py.

#pragma once

#include <cstdint>

namespace bert_kd::unicode {

enum Flag : std::uint8_t {
  kWord = 1,         // \w of Oniguruma
  kLetter = 2,       // [\w&&[^\p{Han}]] of Oniguruma, whose \w leaves ², ½ and the like out there
  kSpace = 4,        // \s of Oniguruma; separates words for the BERT pre-tokenizer
  kHan = 8,          // \p{Han} of Oniguruma
  kPunctuation = 16, // a word of its own for the BERT pre-tokenizer
  kChinese = 32,     // set apart by the BERT normaliser's handle_chinese_chars
  kRemoved = 64,     // dropped by its clean_text, which makes a blank of any other whitespace
  kDoubtful = 128,   // releases of `tokenizers` differ, or neighbours decide what becomes of it
};

struct Record {
  std::uint8_t flags;
  std::uint16_t stripped_at;    // what strip_accents makes of it, within kReplacements,
  std::uint8_t stripped_bytes;  // or kSame
  std::uint16_t lowered_at;     // what lowercase makes of it
  std::uint8_t lowered_bytes;
};

constexpr std::uint8_t kSame = 255;
constexpr std::uint32_t kLimit = 0x110000;
constexpr std::uint32_t kBlockSize = 128;

extern const std::uint16_t kBlocks[kLimit / kBlockSize];
extern const std::uint16_t kRecordOf[][kBlockSize];
extern const Record kRecords[];
extern const unsigned char kReplacements[];

// The record of a code point below kLimit.
inline const Record& record_of(std::uint32_t code) {
  return kRecords[kRecordOf[kBlocks[code / kBlockSize]][code % kBlockSize]];
}

}  // namespace bert_kd::unicode
