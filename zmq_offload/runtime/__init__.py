"""Runs compiled libraries: one virtual machine of TVM's on a library, its memory, its threads, and forks.

Workers, devices, the compiler's checks and the profiler all run libraries by this room. TVM's runtime library is enough
for it (see `tvm_library`), so nothing of the compiler is imported. What depends on TVM's or glibc's internals has a
module of its own here, each with a test that fails when the library changes.
"""
