// What CUDA C++ that TVM generates needs of CUDA, for a C++ compiler of a CPU. The threads of a block are coroutines:
// each runs until the next barrier, then the next one does, first to last or last to first. So a kernel that lacks a
// barrier computes something else in one of the two orders. Shared memory begins as NaN.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static
#define uint unsigned int
#define uchar unsigned char
#define ushort unsigned short
#define CUDART_INF_F INFINITY
#define CUDART_NAN_F NAN
#define CUDART_INF ((double)INFINITY)
#define CUDART_NAN ((double)NAN)

struct dim3_ { int x, y, z; };
static dim3_ threadIdx, blockIdx;

// ---- coroutines ----------------------------------------------------------------------------------------------------

struct Fiber { ucontext_t context; std::vector<char> stack; bool done; };
static ucontext_t scheduler;
static std::vector<Fiber> fibers;
static int current;
static bool first_;  // whether this is the thread of its block that runs first
static void (*body)(void **);
static void **arguments;

static void run_fiber() { body(arguments); fibers[current].done = true; swapcontext(&fibers[current].context, &scheduler); }
static inline void __syncthreads() { swapcontext(&fibers[current].context, &scheduler); }
static inline void __syncwarp(unsigned = ~0u) {}

// Values that the threads of a warp give each other. Each exchange ends with a barrier of the whole block, which
// is more than a warp's: all threads have to take part.
static uint64_t exchanged[1024];
static inline int linear_thread(); static inline int block_threads();
template <typename T> static T exchange_(T value, int lane) {
  int me = linear_thread();
  memcpy(&exchanged[me], &value, sizeof(T));
  __syncthreads();
  int from = (me & ~31) + lane;
  T found = value;
  if (from < block_threads()) memcpy(&found, &exchanged[from], sizeof(T));
  __syncthreads();
  return found;
}
static dim3_ block_size;
static inline int linear_thread() { return threadIdx.x + block_size.x * (threadIdx.y + block_size.y * threadIdx.z); }
static inline int block_threads() { return block_size.x * block_size.y * block_size.z; }
static inline unsigned __activemask() { return ~0u; }
template <typename T> static T __shfl_sync(unsigned, T v, int lane, int width = 32) {
  int me = linear_thread() & 31; return exchange_(v, (me & ~(width - 1)) + (lane & (width - 1)));
}
template <typename T> static T __shfl_down_sync(unsigned, T v, int delta, int width = 32) {
  int me = linear_thread() & 31; return exchange_(v, (me & (width - 1)) + delta < width ? me + delta : me);
}
template <typename T> static T __shfl_up_sync(unsigned, T v, int delta, int width = 32) {
  int me = linear_thread() & 31; return exchange_(v, (me & (width - 1)) >= delta ? me - delta : me);
}

// Launches a kernel. `reverse` runs the last thread first. Returns 0.
static int launch_(void (*kernel)(void **), void **args, dim3_ grid, dim3_ block, int reverse) {
  int threads = block.x * block.y * block.z;
  body = kernel; arguments = args; block_size = block;
  fibers.resize(threads);
  for (auto &f : fibers) f.stack.resize(128 * 1024);
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
        for (auto &f : fibers) {
          getcontext(&f.context);
          f.context.uc_stack.ss_sp = f.stack.data(); f.context.uc_stack.ss_size = f.stack.size();
          f.context.uc_link = nullptr; f.done = false;
          makecontext(&f.context, run_fiber, 0);
        }
        for (int left = threads; left;) {
          left = 0;
          for (int i = 0; i < threads; ++i) {
            current = reverse ? threads - 1 - i : i;
            if (fibers[current].done) continue;
            first_ = i == 0;
            threadIdx.x = current % block.x; threadIdx.y = current / block.x % block.y; threadIdx.z = current / (block.x * block.y);
            swapcontext(&scheduler, &fibers[current].context);
            left += !fibers[current].done;
          }
        }
      }
  return 0;
}

// ---- half ----------------------------------------------------------------------------------------------------------

static inline float half_to_float_(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 1023, bits;
  if (e == 31) bits = sign | 0x7f800000 | (m << 13);
  else if (e) bits = sign | ((e + 112) << 23) | (m << 13);
  else { float f = ldexpf((float)m, -24); memcpy(&bits, &f, 4); bits |= sign; }
  float f; memcpy(&f, &bits, 4); return f;
}
static inline uint16_t float_to_half_(float f) {
  uint32_t bits; memcpy(&bits, &f, 4);
  uint16_t sign = (bits >> 16) & 0x8000; uint32_t a = bits & 0x7fffffff;
  if (a > 0x7f800000) return sign | 0x7e00;
  if (a >= 0x47800000) return sign | 0x7c00;
  if (a < 0x38800000) { float g; memcpy(&g, &a, 4); return sign | (uint16_t)lrintf(g * 16777216.0f); }
  a += 0xc8000fff + ((a >> 13) & 1);
  return sign | (uint16_t)(a >> 13);
}
struct half {
  uint16_t bits;
  half() = default;
  half(float f) : bits(float_to_half_(f)) {}
  half(double f) : half((float)f) {}
  half(int i) : half((float)i) {}
  half(int64_t i) : half((float)i) {}
  operator float() const { return half_to_float_(bits); }
};
typedef half __half;
static inline half operator+(half a, half b) { return half((float)a + (float)b); }
static inline half operator-(half a, half b) { return half((float)a - (float)b); }
static inline half operator*(half a, half b) { return half((float)a * (float)b); }
static inline half operator/(half a, half b) { return half((float)a / (float)b); }
static inline half operator-(half a) { return half(-(float)a); }
static inline bool operator<(half a, half b) { return (float)a < (float)b; }
static inline bool operator>(half a, half b) { return (float)a > (float)b; }
static inline bool operator<=(half a, half b) { return (float)a <= (float)b; }
static inline bool operator>=(half a, half b) { return (float)a >= (float)b; }
static inline bool operator==(half a, half b) { return (float)a == (float)b; }
static inline bool operator!=(half a, half b) { return (float)a != (float)b; }
static inline float __half2float(half h) { return h; }
static inline half __float2half(float f) { return f; }
static inline half __float2half_rn(float f) { return f; }
static inline bool __hisnan(half h) { return std::isnan((float)h); }
static inline half __habs(half h) { return fabsf(h); }
#define UNARY_(NAME, F) static inline half NAME(half x) { return half(F((float)x)); }
UNARY_(hexp, expf) UNARY_(hlog, logf) UNARY_(hsqrt, sqrtf) UNARY_(htanh, tanhf) UNARY_(herf, erff) UNARY_(hfloor, floorf)
UNARY_(hceil, ceilf) UNARY_(hcos, cosf) UNARY_(hsin, sinf) UNARY_(htan, tanf) UNARY_(hatan, atanf) UNARY_(hrsqrt, 1.0f / sqrtf)
static inline half hpow(half a, half b) { return powf(a, b); }
static inline unsigned __pack_half2(half x, half y) { return ((unsigned)y.bits << 16) | x.bits; }
struct half2 { half x, y; };
static inline half2 make_half2(half x, half y) { return {x, y}; }
struct half4 { half x, y, z, w; half4() {} half4(half x, half y, half z, half w) : x(x), y(y), z(z), w(w) {} };
static inline half4 make_half4(half x, half y, half z, half w) { return half4(x, y, z, w); }

// ---- what the code calls -------------------------------------------------------------------------------------------

using std::isnan; using std::isinf; using std::isfinite;
template <typename T> static inline T max_(T a, T b) { return a > b ? a : b; }
template <typename T> static inline T min_(T a, T b) { return a < b ? a : b; }
#define PAIR_(T) static inline T max(T a, T b) { return max_(a, b); } static inline T min(T a, T b) { return min_(a, b); }
PAIR_(half) PAIR_(int) PAIR_(int64_t) PAIR_(unsigned)
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
#define __expf expf
#define __logf logf
#define __cosf cosf
#define __sinf sinf
#define __powf powf
#define __tanf tanf
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

#define VECTOR_(T, N) \
  struct alignas(2 * sizeof(T)) N##2 { T x, y; }; struct N##3 { T x, y, z; }; struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) N##4 { T x, y, z, w; }; \
  static inline N##2 make_##N##2(T x, T y) { return {x, y}; } static inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; } \
  static inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTOR_(float, float) VECTOR_(int, int) VECTOR_(unsigned, uint) VECTOR_(signed char, char) VECTOR_(unsigned char, uchar)
VECTOR_(short, short) VECTOR_(unsigned short, ushort) VECTOR_(double, double) VECTOR_(long, longlong)

// ---- tensor cores --------------------------------------------------------------------------------------------------
// Each thread of a warp has a whole fragment, and computes it. A matrix is loaded from and stored to shared memory.

namespace nvcuda { namespace wmma {
struct matrix_a {}; struct matrix_b {}; struct accumulator {}; struct row_major {}; struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
template <typename Use, int M, int N, int K, typename T, typename Layout = void> struct fragment { float x[256]; };
template <typename U, int M, int N, int K, typename T, typename L, typename V>
static inline void fill_fragment(fragment<U, M, N, K, T, L> &f, V v) { for (float &x : f.x) x = (float)v; }
template <typename U, int M, int N, int K, typename T, typename L>
static inline void load_matrix_sync(fragment<U, M, N, K, T, L> &f, const T *p, int stride) {
  for (int i = 0; i < 16; ++i) for (int j = 0; j < 16; ++j)
    f.x[i * 16 + j] = (float)(std::is_same<L, col_major>::value ? p[j * stride + i] : p[i * stride + j]);
}
template <int M, int N, int K, typename T, typename LA, typename LB, typename C>
static inline void mma_sync(fragment<accumulator, M, N, K, C> &d, const fragment<matrix_a, M, N, K, T, LA> &a,
                            const fragment<matrix_b, M, N, K, T, LB> &b, const fragment<accumulator, M, N, K, C> &c) {
  float sums[256];
  for (int i = 0; i < 256; ++i) sums[i] = c.x[i];
  for (int i = 0; i < 16; ++i) for (int k = 0; k < 16; ++k) { float v = a.x[i * 16 + k];
    for (int j = 0; j < 16; ++j) sums[i * 16 + j] += v * b.x[k * 16 + j]; }
  for (int i = 0; i < 256; ++i) d.x[i] = std::is_same<C, half>::value ? (float)half(sums[i]) : sums[i];
}
template <int M, int N, int K, typename T>
static inline void store_matrix_sync(T *p, const fragment<accumulator, M, N, K, T> &f, int stride, layout_t layout) {
  for (int i = 0; i < 16; ++i) for (int j = 0; j < 16; ++j)
    p[layout == mem_row_major ? i * stride + j : j * stride + i] = (T)f.x[i * 16 + j];
}
}}
