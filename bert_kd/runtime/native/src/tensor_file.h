// A safetensors file, mapped into memory and checked before anything in it is believed.

#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace bert_kd {

enum class Dtype { kFp32, kFp16, kBf16, kInt8 };

std::size_t bytes_of(Dtype dtype);

struct Tensor {
  Dtype dtype;
  std::vector<std::size_t> shape;
  const void* data;  // lives as long as the file's object

  std::size_t count() const;
};

class TensorFile {
 public:
  // Throws std::runtime_error saying what is wrong where `path` cannot be read as such a file.
  explicit TensorFile(const std::string& path);
  ~TensorFile();
  TensorFile(const TensorFile&) = delete;
  TensorFile& operator=(const TensorFile&) = delete;

  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // Throws std::runtime_error where there is no tensor `name` of that dtype and shape.
  const Tensor& get(const std::string& name, Dtype dtype,
                    const std::vector<std::size_t>& shape) const;
  // The bytes of the tensor `name`, empty where there is none. Throws std::runtime_error where they
  // are no I8 in one row.
  std::string_view bytes(const std::string& name) const;
  // The tensor `name` of any dtype.
  const Tensor& get(const std::string& name, const std::vector<std::size_t>& shape) const;

 private:
  void read_header();
  void read_tensor(const std::string& name, const struct Json& entry, std::size_t begin);

  void* mapping_ = nullptr;
  std::size_t bytes_ = 0;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace bert_kd
