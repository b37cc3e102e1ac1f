"""Export a network of PyTorch, torchvision or transformers, with random weights, to ONNX.

`python -m tests.benchmarks.torch_networks NAME FILE`. It needs the packages torch, torchvision, transformers and
onnxscript. `bench_models` runs it in a process of its own: PyTorch and TVM each bring an LLVM and a thread pool.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from tests.benchmarks import torch_sequences, torch_vision  # noqa: F401  (importing them fills BUILDERS)
from tests.benchmarks.torch_modules import BUILDERS


def export(name: str, file: Path) -> None:
    """Export a network, with all weights inside the file."""
    torch.manual_seed(0)
    model, inputs = BUILDERS[name]()
    part = file.with_name(f".{file.name}")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), inputs, part, external_data=False, verbose=False)
    part.rename(file)


if __name__ == "__main__":
    export(sys.argv[1], Path(sys.argv[2]))
