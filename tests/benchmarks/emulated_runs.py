"""The part of `emulated` that runs on the emulated CPU: it runs each model once, between two calls of getppid.

It takes a folder of the machine outside, with `jobs.json`: the label of each model, its file, which is a library or an
ONNX file, and the file of its inputs. For each it writes a line with the label, an error if there is one, and the names
of the functions that were counted on their own; and it writes the results, to be compared.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

Call = Callable[[], list[np.ndarray]]


def _library(file: Path, inputs: dict[str, np.ndarray], names: list[str] | None, counting: list[bool]) -> Call:
    from zmq_offload.runtime import tvm_library

    module = tvm_library.tvm_ffi.load_module(str(file))
    machine = tvm_library.virtual_machine(module)
    main = machine["main"]
    tensors = [tvm_library.tensor(value) for value in inputs.values()]
    if names is not None:

        def marked(_function: object, name: str, _before: bool, *_: object) -> int:
            if counting:
                names.append(name)
                os.getppid()
            return 0

        machine["set_instrument"](tvm_library.tvm_ffi.convert(marked))

    def call() -> list[np.ndarray]:
        result = main(*tensors)
        results = [result] if isinstance(result, tvm_library.tvm_ffi.Tensor) else list(result)
        return [np.from_dlpack(tensor) for tensor in results]

    return call


def _onnx(file: Path, inputs: dict[str, np.ndarray]) -> Call:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda: list(session.run(None, inputs))


def main(folder: Path) -> None:
    for job in json.loads((folder / "jobs.json").read_text()):
        file, inputs = Path(job["file"]), dict(np.load(job["inputs"]))
        names: list[str] | None = [] if job["functions"] else None
        counting: list[bool] = []
        try:
            call = _onnx(file, inputs) if file.suffix == ".onnx" else _library(file, inputs, names, counting)
            if job["warm"]:
                call()
        except Exception as error:
            print(json.dumps({"label": job["label"], "error": str(error)[:300]}), flush=True)
            continue
        counting.append(True)
        os.getppid()
        results = call()
        os.getppid()
        np.savez(folder / f"{job['label']}.npz", *results)
        print(json.dumps({"label": job["label"], "functions": names}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
