"""The files of a model in Triton's model repository: `config.pbtxt` and `model.py`. Pure.

`config.pbtxt` is the text form of inference.ModelConfig (Triton's model_config.proto).
A model's tensors, batching and versions are taken from `model.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zmq_offload.artifacts.repository import Batching, ModelVersion
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.tensors import TensorSpec

CONFIG, CODE = "config.pbtxt", "model.py"

_MOST_ROWS = 2**31 - 1
"""The largest `max_batch_size`."""

MODEL = '''"""Serves subgraph.so, written by `zmq-offload export --to triton`.

The Python of Triton's Python backend needs zmq-offload with TVM: pip install 'zmq-offload[tvm]'
"""

try:
    from workers.triton import TritonPythonModel
except ImportError as error:
    raise ImportError(
        f"a package is missing ({error}); install it where Triton's Python backend finds it, with "
        "pip install 'zmq-offload[tvm]'"
    ) from None

__all__ = ["TritonPythonModel"]
'''


class Running(NamedTuple):
    """How Triton runs a model.

    Parameters
    ----------
    instances : int, default 1
        The number of instances, each a process with a virtual machine.
    threads : int, optional
        TVM's threads in each instance. Default: the server's cores divided by the instances.
    """

    instances: int = 1
    threads: int | None = None


def batching_in_triton(versions: Sequence[ModelVersion]) -> Batching | None:
    """How Triton may run requests for these versions of a model together, which it decides for all of them.

    None: one at a time, because a model.json says so, or because Triton cannot describe a tensor without its rows.
    """
    bounds, delays = [_MOST_ROWS], []
    for model in versions:
        tensors = (*model.inputs, *model.outputs)
        if model.batching is None or any(len(spec.shape) == 1 or spec.multiple(0) > 1 for spec in tensors):
            return None
        bounds += [model.batching.max_batch, *[most for spec in tensors if (most := spec.maximum(0)) is not None]]
        delays.append(model.batching.delay_us)
    return Batching(min(bounds), max(delays))


def check_tensors(model: ModelVersion) -> None:
    """Raise InvalidArgument, naming the tensor, for a model that Triton cannot serve."""
    what = f"Triton cannot serve model {model.name!r} version {model.version}"
    for kind, tensors in (("inputs", model.inputs), ("outputs", model.outputs)):
        if not tensors:
            raise InvalidArgument(f"{what}: it has no {kind}; cut it so that it has some")
    for spec in (*model.inputs, *model.outputs):
        if not spec.shape:
            raise InvalidArgument(f"{what}: tensor {spec} has no dimensions; cut it elsewhere, or reshape it to [1]")
        if 0 in spec.shape:
            raise InvalidArgument(f"{what}: tensor {spec} has no elements; cut it elsewhere")


def config_of(versions: Sequence[ModelVersion], running: Running) -> str:
    """The text of `config.pbtxt` for versions of a model, which have the same signature.

    Raises InvalidArgument for numbers that are none, and, naming the tensor, for a model that Triton cannot serve.
    """
    model = versions[-1]
    _check_running(running)
    check_tensors(model)
    batching = batching_in_triton(versions)
    lines = [
        f"name: {_quoted(model.name)}",
        'backend: "python"',
        f"max_batch_size: {batching.max_batch if batching else 0}",
        *_tensors("input", model.inputs, batched=batching is not None),
        *_tensors("output", model.outputs, batched=batching is not None),
        "version_policy { all { } }",
        f"instance_group [ {{ kind: KIND_CPU count: {running.instances} }} ]",
        *_queue(batching),
    ]
    if running.threads is not None:
        lines.append(f'parameters {{ key: "threads" value {{ string_value: "{running.threads}" }} }}')
    return "\n".join(lines) + "\n"


def _check_running(running: Running) -> None:
    """Raise InvalidArgument for numbers that are written to `config.pbtxt` and are none."""
    for name, value in running._asdict().items():
        if not (type(value) is int and value >= 1) and not (name == "threads" and value is None):
            raise InvalidArgument(f"{name} {value!r} is not a whole number from 1")


def _queue(batching: Batching | None) -> list[str]:
    """How requests wait. Levels of priority and timeouts of a queue are not used: with either, Triton's scheduler
    notices up to half a second late that an instance has become free."""
    if batching is None:
        return []
    return [f"dynamic_batching {{ max_queue_delay_microseconds: {batching.delay_us} }}"]


def _tensors(kind: str, tensors: Sequence[TensorSpec], *, batched: bool) -> list[str]:
    found = []
    for spec in tensors:
        dims = ", ".join(str(extent) for extent in spec.shape[batched:])
        found.append(f"{kind} [ {{ name: {_quoted(spec.name)} data_type: TYPE_{spec.datatype} dims: [ {dims} ] }} ]")
    return found


def _quoted(text: str) -> str:
    """A string of protobuf's text format: quotes, backslashes and control characters as octal escapes."""
    return '"' + "".join(f"\\{ord(c):03o}" if c in '"\\\x7f' or c < " " else c for c in text) + '"'


def same_signature(one: ModelVersion, other: ModelVersion) -> bool:
    """Whether two versions can share a `config.pbtxt`."""
    return [(s.name, s.datatype, s.shape) for s in (*one.inputs, *one.outputs)] == [
        (s.name, s.datatype, s.shape) for s in (*other.inputs, *other.outputs)
    ]
