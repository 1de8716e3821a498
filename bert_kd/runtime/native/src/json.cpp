#include "json.h"

#include <locale>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace bert_kd {
namespace {

constexpr int kDeepest = 32;

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json document() {
    Json value = parse(0);
    skip_spaces();
    if (at_ != text_.size()) fail("something behind the end");
    return value;
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw std::runtime_error("not JSON at byte " + std::to_string(at_) + ": " + what);
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_spaces() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++at_;
  }

  void expect(char wanted) {
    skip_spaces();
    if (peek() != wanted) fail("a wrong character");
    ++at_;
  }

  bool accept(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json parse(int depth) {
    if (depth > kDeepest) fail("nested too deep");
    skip_spaces();
    Json value;
    if (peek() == '{') {
      object(value, depth);
    } else if (peek() == '[') {
      array(value, depth);
    } else if (peek() == '"') {
      value.kind = Json::Kind::kString;
      value.string = string();
    } else if (accept("true")) {
      value.kind = Json::Kind::kBool;
      value.boolean = true;
    } else if (accept("false")) {
      value.kind = Json::Kind::kBool;
    } else if (!accept("null")) {
      value.kind = Json::Kind::kNumber;
      value.number = number();
    }
    return value;
  }

  void object(Json& value, int depth) {
    value.kind = Json::Kind::kObject;
    expect('{');
    skip_spaces();
    if (peek() == '}') {
      ++at_;
      return;
    }
    for (;;) {
      skip_spaces();
      if (peek() != '"') fail("a member's name is missing");
      std::string name = string();
      expect(':');
      if (!value.members.emplace(std::move(name), parse(depth + 1)).second) {
        fail("a member is named twice");
      }
      if (!more('}')) return;
    }
  }

  void array(Json& value, int depth) {
    value.kind = Json::Kind::kArray;
    expect('[');
    skip_spaces();
    if (peek() == ']') {
      ++at_;
      return;
    }
    do {
      value.items.push_back(parse(depth + 1));
    } while (more(']'));
  }

  // Reads a comma (true) or the end.
  bool more(char end) {
    skip_spaces();
    if (peek() == ',') {
      ++at_;
      return true;
    }
    expect(end);
    return false;
  }

  double number() {
    const std::size_t first = at_;
    while (at_ < text_.size() &&
           std::string_view("+-.eE0123456789").find(text_[at_]) != std::string_view::npos) {
      ++at_;
    }
    // Not strtod, which wants a comma where the process has set such a locale.
    std::istringstream digits{std::string(text_.substr(first, at_ - first))};
    digits.imbue(std::locale::classic());
    double value = 0;
    if (!(digits >> value) || digits.peek() != std::istringstream::traits_type::eof()) {
      fail("a wrong character");
    }
    return value;
  }

  unsigned code_unit() {
    unsigned value = 0;
    for (int digit = 0; digit < 4; ++digit, ++at_) {
      const char c = peek();
      const int nibble = c >= '0' && c <= '9'   ? c - '0'
                         : c >= 'a' && c <= 'f' ? c - 'a' + 10
                         : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                : -1;
      if (nibble < 0) fail("a wrong escape");
      value = value * 16 + static_cast<unsigned>(nibble);
    }
    return value;
  }

  void escape(std::string& out) {
    static constexpr std::string_view kNames = "\"\\/bfnrt", kValues = "\"\\/\b\f\n\r\t";
    const char name = peek();
    ++at_;
    if (name != 'u') {
      const std::size_t found = kNames.find(name);
      if (found == std::string_view::npos) fail("a wrong escape");
      out += kValues[found];
      return;
    }
    unsigned point = code_unit();
    if (point >= 0xd800 && point < 0xdc00 && accept("\\u")) {
      point = 0x10000 + ((point - 0xd800) << 10) + ((code_unit() - 0xdc00) & 0x3ff);
    }
    if (point < 0x80) {
      out += static_cast<char>(point);
      return;
    }
    if (point < 0x800) {
      out += static_cast<char>(0xc0 | point >> 6);
    } else {
      if (point < 0x10000) {
        out += static_cast<char>(0xe0 | point >> 12);
      } else {
        out += static_cast<char>(0xf0 | point >> 18);
        out += static_cast<char>(0x80 | (point >> 12 & 0x3f));
      }
      out += static_cast<char>(0x80 | (point >> 6 & 0x3f));
    }
    out += static_cast<char>(0x80 | (point & 0x3f));
  }

  std::string string() {
    std::string out;
    ++at_;
    for (;;) {
      if (at_ >= text_.size()) fail("a string does not end");
      const char c = text_[at_++];
      if (c == '"') return out;
      if (c == '\\') {
        escape(out);
      } else {
        out += c;
      }
    }
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

const Json* Json::find(const std::string& name) const {
  const auto found = members.find(name);
  return found == members.end() ? nullptr : &found->second;
}

Json parse_json(std::string_view text) { return Parser(text).document(); }

}  // namespace bert_kd
