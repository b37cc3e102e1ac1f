"""Runs a device bundle: the Relax VM, the calls to workers, the choice between worker and fallback, pipelines.

TVM's runtime library is enough for this room (TVM_USE_RUNTIME_LIB=1), where `tvm.relax` cannot be imported. `byoc` and
`compile` need the compiler.
"""
