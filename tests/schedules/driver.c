/* Runs compiled functions of one tensor without TVM's runtime: reads float32 from stdin, writes each function's result. */
#include "standalone.h"

#include "functions.h" /* NAMES(F): F(name) for each function, COUNT */

#define DECLARE(name) Function __tvm_ffi_##name;
NAMES(DECLARE)
#define ADDRESS(name) __tvm_ffi_##name,
static Function *functions[] = {NAMES(ADDRESS)};

extern int (*__TVMBackendParallelLaunch)(Task, void *, int);

int main(void) {
  int64_t shape[] = {COUNT};
  float *in = aligned_alloc(64, (COUNT * 4 + 63) / 64 * 64), *out = aligned_alloc(64, (COUNT * 4 + 63) / 64 * 64);
  if (fread(in, 4, COUNT, stdin) != COUNT) return 2;
  __TVMBackendParallelLaunch = launch;
  for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
    Tensor x = {in, 1, 0, 1, 2, 32, 1, shape, 0, 0}, y = {out, 1, 0, 1, 2, 32, 1, shape, 0, 0};
    Any arguments[] = {{7, 0, &x}, {7, 0, &y}}, result = {0, 0, 0};
    if (functions[i](0, arguments, 2, &result)) return 3;
    if (fwrite(out, 4, COUNT, stdout) != COUNT) return 4;
  }
  return 0;
}
