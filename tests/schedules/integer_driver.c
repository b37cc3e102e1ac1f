/* Runs the calls of a compiled module without TVM's runtime: reads the given tensors from stdin, writes the last one. */
#include "standalone.h"
typedef struct { uint8_t code, bits; int32_t ndim, given; int64_t shape[6]; } Shape;
typedef struct { Function *function; int32_t count; int32_t tensors[12]; } Call;

#include "calls.h" /* shapes[]: all tensors; calls[]: functions and the tensors they take */

extern __attribute__((weak)) int (*__TVMBackendParallelLaunch)(Task, void *, int);
extern __attribute__((weak)) void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
extern __attribute__((weak)) int (*__TVMBackendFreeWorkspace)(int, int, void *);

static void *take(int type, int id, uint64_t bytes, int code, int bits) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

static int give(int type, int id, void *pointer) { free(pointer); return 0; }

int main(void) {
  enum { COUNT = sizeof shapes / sizeof *shapes };
  static Tensor tensors[COUNT];
  size_t bytes = 0;
  if (&__TVMBackendParallelLaunch) __TVMBackendParallelLaunch = launch;
  if (&__TVMBackendAllocWorkspace) __TVMBackendAllocWorkspace = take;
  if (&__TVMBackendFreeWorkspace) __TVMBackendFreeWorkspace = give;
  for (int i = 0; i < COUNT; i++) {
    Shape *s = &shapes[i];
    bytes = s->bits / 8;
    for (int d = 0; d < s->ndim; d++) bytes *= s->shape[d];
    tensors[i] = (Tensor){take(0, 0, bytes, 0, 0), 1, 0, s->ndim, s->code, s->bits, 1, s->shape, 0, 0};
    if (s->given && fread(tensors[i].data, 1, bytes, stdin) != bytes) return 2;
  }
  for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
    Any arguments[12], result = {0, 0, 0};
    for (int a = 0; a < calls[i].count; a++) arguments[a] = (Any){7, 0, &tensors[calls[i].tensors[a]]};
    if (calls[i].function(0, arguments, calls[i].count, &result)) return 3;
  }
  return fwrite(tensors[COUNT - 1].data, 1, bytes, stdout) != bytes;
}
