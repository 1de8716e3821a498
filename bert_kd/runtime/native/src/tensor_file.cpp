#include "tensor_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string_view>

#include "json.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the file's numbers are used where they lie, lowest byte first"
#endif

namespace bert_kd {
namespace {

constexpr std::size_t kLongestHeader = std::size_t{16} << 20;

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

std::string describe(const std::vector<std::size_t>& shape) {
  std::string text = "[";
  for (std::size_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

// A whole number that a double holds exactly.
std::size_t whole(const Json& value, const std::string& name) {
  if (value.kind != Json::Kind::kNumber || value.number < 0 || value.number > 0x1p53 ||
      value.number != std::floor(value.number)) {
    fail("the tensor " + name + " has a size that is no whole number");
  }
  return static_cast<std::size_t>(value.number);
}

}  // namespace

std::size_t bytes_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFp32:
      return 4;
    case Dtype::kFp16:
    case Dtype::kBf16:
      return 2;
    case Dtype::kInt8:
      break;
  }
  return 1;
}

std::size_t Tensor::count() const {
  std::size_t count = 1;
  for (std::size_t size : shape) count *= size;
  return count;
}

TensorFile::TensorFile(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail(std::string("cannot be opened: ") + std::strerror(errno));
  struct stat facts;
  const bool known = fstat(descriptor, &facts) == 0;
  if (known && S_ISREG(facts.st_mode) && facts.st_size > 0) {
    bytes_ = static_cast<std::size_t>(facts.st_size);
    void* const mapping = mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, descriptor, 0);
    if (mapping != MAP_FAILED) mapping_ = mapping;
  }
  const int error = errno;
  close(descriptor);
  if (!mapping_) {
    if (known && !S_ISREG(facts.st_mode)) fail("is no regular file");
    if (known && facts.st_size == 0) fail("is empty");
    fail(std::string("cannot be mapped into memory: ") + std::strerror(error));
  }
  try {
    read_header();
  } catch (...) {
    munmap(mapping_, bytes_);
    throw;
  }
}

TensorFile::~TensorFile() { munmap(mapping_, bytes_); }

void TensorFile::read_header() {
  const char* const bytes = static_cast<const char*>(mapping_);
  if (bytes_ < 8) fail("is too short for a safetensors file");
  std::uint64_t length = 0;
  for (int at = 7; at >= 0; --at) length = length << 8 | static_cast<unsigned char>(bytes[at]);
  if (length > kLongestHeader || length > bytes_ - 8) {
    fail("has a header of " + std::to_string(length) + " bytes in a file of " +
         std::to_string(bytes_) + ": it is truncated or no safetensors file");
  }
  const Json header = parse_json(std::string_view(bytes + 8, length));
  if (header.kind != Json::Kind::kObject) fail("has a header that is no JSON object");
  for (const auto& [name, entry] : header.members) {
    if (name != "__metadata__") {
      read_tensor(name, entry, 8 + length);
      continue;
    }
    for (const auto& [key, value] : entry.members) {
      if (value.kind != Json::Kind::kString) fail("has metadata that are no strings");
      metadata_[key] = value.string;
    }
  }
}

void TensorFile::read_tensor(const std::string& name, const Json& entry, std::size_t begin) {
  const Json* const dtype = entry.find("dtype");
  const Json* const shape = entry.find("shape");
  const Json* const offsets = entry.find("data_offsets");
  if (!dtype || !shape || !offsets || shape->kind != Json::Kind::kArray ||
      offsets->items.size() != 2) {
    fail("describes the tensor " + name + " wrongly");
  }
  Tensor tensor;
  if (dtype->string == "F32") {
    tensor.dtype = Dtype::kFp32;
  } else if (dtype->string == "F16") {
    tensor.dtype = Dtype::kFp16;
  } else if (dtype->string == "BF16") {
    tensor.dtype = Dtype::kBf16;
  } else if (dtype->string == "I8") {
    tensor.dtype = Dtype::kInt8;
  } else {
    fail("has the tensor " + name + " in the unknown format " + dtype->string);
  }
  std::size_t bytes = bytes_of(tensor.dtype);
  for (const Json& item : shape->items) {
    tensor.shape.push_back(whole(item, name));
    if (tensor.shape.back() != 0 &&
        bytes > std::numeric_limits<std::size_t>::max() / tensor.shape.back()) {
      fail("has the tensor " + name + " of an absurd size");
    }
    bytes *= tensor.shape.back();
  }
  const std::size_t first = whole(offsets->items[0], name);
  const std::size_t last = whole(offsets->items[1], name);
  if (first > last || last > bytes_ - begin || last - first != bytes) {
    fail("has the tensor " + name + " " + describe(tensor.shape) +
         " at bytes that do not hold it: it is truncated or damaged");
  }
  if ((begin + first) % bytes_of(tensor.dtype) != 0) fail("has the tensor " + name + " misaligned");
  tensor.data = static_cast<const char*>(mapping_) + begin + first;
  tensors_.emplace(name, std::move(tensor));
}

const Tensor& TensorFile::get(const std::string& name,
                              const std::vector<std::size_t>& shape) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) fail("has no tensor " + name);
  if (found->second.shape != shape) {
    fail("has the tensor " + name + " of the shape " + describe(found->second.shape) + ", not " +
         describe(shape));
  }
  return found->second;
}

std::string_view TensorFile::bytes(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) return {};
  const Tensor& tensor = found->second;
  if (tensor.dtype != Dtype::kInt8 || tensor.shape.size() != 1) {
    fail("has the tensor " + name + " in another number format");
  }
  return {static_cast<const char*>(tensor.data), tensor.count()};
}

const Tensor& TensorFile::get(const std::string& name, Dtype dtype,
                              const std::vector<std::size_t>& shape) const {
  const Tensor& tensor = get(name, shape);
  if (tensor.dtype != dtype) fail("has the tensor " + name + " in another number format");
  return tensor;
}

}  // namespace bert_kd
