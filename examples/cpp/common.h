// What the parts of the example share: errors with a status code, and tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

// An error with one of the status codes of docs/errors.md, such as DEADLINE_EXCEEDED.
struct OffloadError : std::runtime_error {
  OffloadError(std::string code, const std::string& text) : std::runtime_error(text), code(std::move(code)) {}

  std::string code;
};

// The bytes of one element, by the name of its datatype on the wire.
inline size_t element_bytes(const std::string& datatype) {
  static const std::vector<std::pair<std::string, size_t>> known = {
      {"BOOL", 1}, {"UINT8", 1}, {"INT8", 1}, {"UINT16", 2}, {"INT16", 2}, {"FP16", 2},
      {"UINT32", 4}, {"INT32", 4}, {"FP32", 4}, {"UINT64", 8}, {"INT64", 8}, {"FP64", 8}};
  for (const auto& [name, bytes] : known) {
    if (name == datatype) return bytes;
  }
  throw OffloadError("INVALID_ARGUMENT", "datatype '" + datatype + "' is not one of docs/protocol.md");
}

// Name, datatype and shape of a tensor. An extent of -1 stands for any.
struct TensorSpec {
  std::string name, datatype;
  std::vector<int64_t> shape;

  size_t bytes() const {
    size_t product = element_bytes(datatype);
    for (int64_t extent : shape) product *= static_cast<size_t>(extent);
    return product;
  }

  bool fits(const TensorSpec& other) const {
    if (name != other.name || datatype != other.datatype || shape.size() != other.shape.size()) return false;
    for (size_t at = 0; at < shape.size(); ++at) {
      if (shape[at] != -1 && shape[at] != other.shape[at]) return false;
    }
    return true;
  }

  std::string text() const {
    std::string extents;
    for (int64_t extent : shape) {
      extents += (extents.empty() ? "" : ",") + (extent == -1 ? std::string("?") : std::to_string(extent));
    }
    return name + " " + datatype + "[" + extents + "]";
  }
};

// A tensor whose memory belongs to somebody else: TVM, or a reply.
struct TensorView {
  TensorSpec spec;
  const void* data;
};

// A region of the model that workers compute, as manifest.json has it.
struct Region {
  std::string symbol, model, label;
  int64_t version;  // 0: the latest with this signature
  std::vector<TensorSpec> inputs, outputs;
};
