"""Runs a device bundle: the Relax VM, the calls to workers, the choice between worker and fallback, pipelines.

TVM's runtime library is enough for this room, without TVM's Python package. `byoc` and `compile` need the compiler.
"""
