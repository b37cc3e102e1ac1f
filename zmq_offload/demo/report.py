"""The demo's output as text."""

from __future__ import annotations

from collections.abc import Sequence

from zmq_offload.common.units import counted
from zmq_offload.demo.build import Built, Job
from zmq_offload.demo.check import Verdict
from zmq_offload.demo.items import Results, StageTimes
from zmq_offload.protocol.tensors import TensorSpec

_STAGES = {
    "device": "the backbone, on the device",
    "wire": "between device and broker, both ways",
    "queue": "waiting for a worker",
    "compute": "neck and head, on a worker",
    "total": "",
}


def describe_job(job: Job, pictures: int) -> str:
    width, height = job.size
    return "\n".join(
        [
            f"model    {job.model.name}, on {counted(pictures, 'picture')} of {width} x {height}",
            f"cut      {' '.join(job.cut)}",
        ]
    )


def describe_built(built: Built) -> str:
    device, subgraph = (
        sum(file.stat().st_size for file in folder.rglob("*.so")) for folder in (built.device, built.repository)
    )
    return f"compiled in {built.folder}: {_bytes(device)} for the device, {_bytes(subgraph)} for workers"


def describe_results(results: Results, workers: int) -> str:
    lines = ["Crossed the wire for each item, in one message each way:"]
    for word, tensors in (("sent", results.sent), ("received", results.received)):
        lines += [f"  {word:<9} {_tensor(tensor)}" for tensor in tensors]
        lines.append(f"  {'':<9} {sum(tensor.nbytes for tensor in tensors):>11,} bytes {word}")
    lines += ["", f"{'Time of an item, in ms':<24} {'mean':>9} {'longest':>9}"]
    for at, stage in enumerate(StageTimes._fields):
        times = [item.stages[at] * 1000 for item in results.items]
        row = f"  {stage:<22} {sum(times) / len(times):>9.1f} {max(times):>9.1f}   {_STAGES[stage]}"
        lines.append(row.rstrip())
    devices = len({item.device for item in results.items})
    lines += [
        "",
        f"{counted(len(results.items), 'item')} of {counted(devices, 'device')}{' at a time' if devices > 1 else ''} "
        f"on {counted(workers, 'worker')} in {results.seconds:.2f} s: "
        f"{len(results.items) / results.seconds:.2f} items per second",
    ]
    return "\n".join(lines)


def describe_verdicts(verdicts: Sequence[Verdict]) -> str:
    return "\n".join(["Largest difference of any item from", *(f"  {verdict}" for verdict in verdicts)])


def _tensor(tensor: TensorSpec) -> str:
    return f"{tensor.nbytes:>11,} bytes  {tensor}"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
