"""The TVM side of offloading, as a BYOC backend named `zmq_offload`.

`graph` and `outline` cut a region out of a Relax function by its tensors, `partition` does it by patterns, `codegen`
is the code generator that leaves one packed call per region in the device graph. `zmq_offload.device` runs the result.
"""
