"""Split an ONNX file in the middle of its work: `python split_onnx.py model.onnx`. Writes the folder dist."""

import sys

from zmq_offload.compile import compile_model, list_cuts

model = sys.argv[1]
cuts = list_cuts(model)  # the tensors at which one cut is enough; `inputs={"x": (1, 3, 320, 320)}` sets open shapes
for cut in cuts:
    print(f"{cut.tensor}: {cut.nbytes} bytes to send, {cut.share:.0%} of the work offloaded")
middle = min(cuts, key=lambda cut: abs(cut.share - 0.5))
compiled = compile_model(model, cut=middle.name, name="split", output="dist", check=True)
print(f"cut at {middle.name}: the device loads {compiled.device}, workers serve {compiled.subgraphs[0].parent.parent}")
