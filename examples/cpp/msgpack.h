// The few kinds of MessagePack that the protocol has: arrays, integers, texts and bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common.h"

class Writer {
 public:
  Writer& array(size_t length) { return length < 16 ? put(0x90 | length, 1) : put(0xdc, 1).put(length, 2); }

  Writer& integer(int64_t value) {
    if (value < 0) return put(0xd3, 1).put(static_cast<uint64_t>(value), 8);
    if (value < 128) return put(value, 1);
    if (value < 1 << 8) return put(0xcc, 1).put(value, 1);
    if (value < 1 << 16) return put(0xcd, 1).put(value, 2);
    return value < int64_t(1) << 32 ? put(0xce, 1).put(value, 4) : put(0xcf, 1).put(value, 8);
  }

  Writer& extent(int64_t value) { return value == -1 ? put(0xff, 1) : integer(value); }

  Writer& text(std::string_view value) {
    size_t length = value.size();
    length < 32 ? put(0xa0 | length, 1) : length < 256 ? put(0xd9, 1).put(length, 1) : put(0xda, 1).put(length, 2);
    bytes_ += value;
    return *this;
  }

  Writer& binary(std::string_view value) {  // of less than 256 bytes
    put(0xc4, 1).put(value.size(), 1);
    bytes_ += value;
    return *this;
  }

  const std::string& bytes() const { return bytes_; }

 private:
  Writer& put(uint64_t value, int bytes) {
    while (bytes-- > 0) bytes_ += static_cast<char>(value >> (8 * bytes));
    return *this;
  }

  std::string bytes_;
};

// Reads what `Writer` writes, and refuses everything else.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}

  size_t array() {
    uint8_t kind = byte();
    if ((kind & 0xf0) == 0x90) return kind & 0x0f;
    return number(kind == 0xdc ? 2 : kind == 0xdd ? 4 : fail());
  }

  int64_t integer() {
    uint8_t kind = byte();
    if (kind < 128) return kind;
    return static_cast<int64_t>(number(kind >= 0xcc && kind <= 0xcf ? 1 << (kind - 0xcc) : fail()));
  }

  std::string text() {
    uint8_t kind = byte();
    if ((kind & 0xe0) == 0xa0) return take(kind & 0x1f);
    return take(number(kind == 0xd9 ? 1 : kind == 0xda ? 2 : fail()));
  }

  std::string binary() {
    uint8_t kind = byte();
    return take(number(kind == 0xc4 ? 1 : kind == 0xc5 ? 2 : fail()));
  }

 private:
  [[noreturn]] static int fail() { throw OffloadError("INTERNAL", "the broker sent a message that is not valid"); }

  std::string take(size_t length) {
    if (length > rest_.size()) fail();
    std::string taken(rest_.substr(0, length));
    rest_.remove_prefix(length);
    return taken;
  }

  uint8_t byte() { return static_cast<uint8_t>(take(1)[0]); }

  uint64_t number(int bytes) {
    uint64_t value = 0;
    while (bytes-- > 0) value = value << 8 | byte();
    return value;
  }

  std::string_view rest_;
};
