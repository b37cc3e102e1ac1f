"""Split a Relax module at a variable, compile both halves, and run them. Writes the folder dist-relax."""

import numpy as np
from tvm import relax

import zmq_offload
from zmq_offload.compile import compile_module, cut_module

builder = relax.BlockBuilder()
x = relax.Var("x", relax.TensorType((1, 8), "float32"))
weight = relax.const(np.random.default_rng(0).random((8, 8), "float32"))
with builder.function("main", [x]):
    features = builder.emit(relax.op.nn.relu(relax.op.matmul(x, weight)), "features")
    builder.emit_func_output(relax.op.nn.softmax(relax.op.matmul(features, weight)))

split = cut_module(builder.get(), "features")  # or partition_for_zmq_offload(module, patterns)
compiled = compile_module(split, name="relax", outputs=["y"], output="dist-relax", with_fallback=True)
# Without a fabric the fallback computes the offloaded half; with workers on dist-relax/repository, leave `offload` out.
with zmq_offload.load(compiled.device, broker="tcp://127.0.0.1:5555", offload="never") as model:
    print(model(np.ones((1, 8), "float32")))
