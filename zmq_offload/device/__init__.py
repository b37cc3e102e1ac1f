"""Runs a device bundle: the Relax VM, the calls to workers, the choice between worker and fallback, pipelines.

This room needs TVM's runtime library only (TVM_USE_RUNTIME_LIB=1), where `tvm.relax` does not work. `byoc` and
`compile` need the compiler.
"""
