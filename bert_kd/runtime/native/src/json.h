// A strict reader of JSON: enough for the header of a safetensors file, and safe on any bytes.

#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace bert_kd {

struct Json {
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  bool boolean = false;
  double number = 0;
  std::string string;
  std::vector<Json> items;
  std::map<std::string, Json> members;

  // The member `name`, or null where this is no object or has none.
  const Json* find(const std::string& name) const;
};

// Throws std::runtime_error with the position where `text` is not JSON, nests deeper than 32 or
// names a member twice.
Json parse_json(std::string_view text);

}  // namespace bert_kd
