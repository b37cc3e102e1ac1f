/* What compiled functions call and take: the parts of TVM's runtime that the drivers stand in for. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct { int32_t type, zero; void *pointer; } Any;
typedef struct {
  void *data;
  int32_t device_type, device_id, ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} Tensor;
typedef struct { void *sync; int32_t tasks; } Group;
typedef int (*Task)(int, Group *, void *);
typedef int Function(void *, Any *, int32_t, Any *);

static int launch(Task task, void *data, int tasks) {
  Group group = {0, tasks > 0 ? tasks : 1};
  for (int i = 0; i < group.tasks; i++)
    if (task(i, &group, data)) return -1;
  return 0;
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int i = 0; i < count; i++)
    if (parts[i]) fputs(parts[i], stderr);
  fputc('\n', stderr);
}
