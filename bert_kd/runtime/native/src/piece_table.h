// A hash table from pieces of words to ids that is built once and then only read.

#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace bert_kd {

// Mixes the bytes of a word, eight at a time; the same on any machine of one byte order.
inline std::uint64_t hash_of(std::string_view word, std::uint64_t seed) {
  const auto load = [](const char* at, std::size_t bytes) {
    std::uint64_t value = 0;
    std::memcpy(&value, at, bytes);
    return value;
  };
  const auto mix = [](std::uint64_t value) {
    value *= 0x9E3779B97F4A7C15u;
    return value ^ value >> 32;
  };
  const char* const at = word.data();
  const std::size_t size = word.size();
  std::uint64_t hash = mix(seed + size);
  if (size >= 8) {
    for (std::size_t from = 0; from + 8 < size; from += 8) hash = mix(hash ^ load(at + from, 8));
    return mix(hash ^ load(at + size - 8, 8));
  }
  if (size >= 4) return mix(hash ^ (load(at, 4) << 32 | load(at + size - 4, 4)));
  if (size >= 1) return mix(hash ^ (load(at, 1) << 16 | load(at + size / 2, 1) << 8 |
                                    load(at + size - 1, 1)));
  return hash;
}

// The bytes of the pieces are their owner's, and stay where they are.
class PieceTable {
 public:
  static constexpr std::int32_t kNone = -1;

  // Makes room for `count` pieces, which is all that may be added.
  void reserve(std::size_t count) {
    std::size_t size = 64;
    while (size < 2 * count) size *= 2;
    slots_.assign(size, Slot{});
  }

  // Adds `piece`, of less than 4 GiB; the first of equal ones stays.
  void add(std::string_view piece, std::int32_t id) {
    Slot& slot = slots_[place_of(piece)];
    if (slot.id != kNone) return;
    slot = {piece.data(), static_cast<std::uint32_t>(piece.size()), id};
    if (piece.size() > longest_) longest_ = piece.size();
  }

  // The id of `piece`, or kNone.
  std::int32_t find(std::string_view piece) const {
    return piece.size() > longest_ ? kNone : slots_[place_of(piece)].id;
  }

  // The bytes of the longest piece.
  std::size_t longest() const { return longest_; }

 private:
  struct Slot {
    const char* at = nullptr;
    std::uint32_t size = 0;
    std::int32_t id = kNone;
  };

  // Where `piece` stands, or else would.
  std::size_t place_of(std::string_view piece) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t place = hash_of(piece, 0) & mask;
    while (slots_[place].id != kNone && text_of(slots_[place]) != piece) place = (place + 1) & mask;
    return place;
  }

  static std::string_view text_of(const Slot& slot) { return {slot.at, slot.size}; }

  std::vector<Slot> slots_;  // a power of two, at most half of them taken
  std::size_t longest_ = 0;
};

}  // namespace bert_kd
