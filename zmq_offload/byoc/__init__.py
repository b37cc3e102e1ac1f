"""The TVM side of offloading, as a BYOC backend named `zmq_offload`.

`graph` and `outline` cut a region out of a Relax function by its tensors, `partition` does it by patterns, `codegen`
is the code generator that leaves one packed call per region in the device graph, and `model` with `remote` is what
runs on the device. Nothing is imported here: a device needs the last two only, and they work with TVM's runtime library
alone (TVM_USE_RUNTIME_LIB=1), where `tvm.relax` does not.
"""
