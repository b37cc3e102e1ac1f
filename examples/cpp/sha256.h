// SHA-256 (FIPS 180-4): signatures of subgraphs and the checksum of a library are made with it.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <string>

namespace sha256_parts {

inline uint32_t rotate(uint32_t word, int bits) { return word >> bits | word << (32 - bits); }

// The first 32 bits after the point of a root of the prime numbers, from 2.
template <size_t N>
std::array<uint32_t, N> roots(double (*root)(double)) {
  std::array<uint32_t, N> found{};
  size_t count = 0;
  for (int number = 2; count < N; ++number) {
    bool prime = true;
    for (int divisor = 2; divisor * divisor <= number; ++divisor) prime = prime && number % divisor;
    if (prime) found[count++] = static_cast<uint32_t>(std::fmod(root(number), 1.0) * 4294967296.0);
  }
  return found;
}

}  // namespace sha256_parts

inline std::string sha256(std::string bytes) {
  using sha256_parts::rotate;
  static const auto constants = sha256_parts::roots<64>(std::cbrt);
  auto state = sha256_parts::roots<8>(std::sqrt);
  const uint64_t bits = bytes.size() * 8;
  bytes += static_cast<char>(0x80);
  bytes.append((120 - bytes.size() % 64) % 64, '\0');
  for (int shift = 56; shift >= 0; shift -= 8) bytes += static_cast<char>(bits >> shift);

  for (size_t block = 0; block < bytes.size(); block += 64) {
    std::array<uint32_t, 64> words{};
    for (size_t at = 0; at < 64; ++at) words[at / 4] = words[at / 4] << 8 | static_cast<uint8_t>(bytes[block + at]);
    for (size_t at = 16; at < 64; ++at) {
      uint32_t early = words[at - 15], late = words[at - 2];
      words[at] = words[at - 16] + (rotate(early, 7) ^ rotate(early, 18) ^ early >> 3) + words[at - 7] +
                  (rotate(late, 17) ^ rotate(late, 19) ^ late >> 10);
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (size_t at = 0; at < 64; ++at) {
      uint32_t one = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + constants[at] + words[at];
      uint32_t two = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
    }
    const std::array<uint32_t, 8> round = {a, b, c, d, e, f, g, h};
    for (size_t at = 0; at < 8; ++at) state[at] += round[at];
  }
  std::string digest;
  for (uint32_t word : state) {
    for (int shift = 24; shift >= 0; shift -= 8) digest += static_cast<char>(word >> shift);
  }
  return digest;
}
