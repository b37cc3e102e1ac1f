"""What the demo says, as text."""

from __future__ import annotations

from collections.abc import Sequence

from zmq_offload.common.units import counted
from zmq_offload.demo.build import Built, Job
from zmq_offload.demo.check import Verdict
from zmq_offload.demo.items import Run, StageTimes
from zmq_offload.protocol.tensors import TensorSpec

_STAGES = {
    "device": "the backbone, on the device",
    "wire": "between device and broker, both ways",
    "queue": "waiting for a worker",
    "compute": "the rest, on a worker",
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
    return f"compiled in {built.folder}: the device's part {_bytes(device)}, the offloaded part {_bytes(subgraph)}"


def describe_run(run: Run, workers: int) -> str:
    lines = ["What crossed the wire for each frame, in one message each way:"]
    for word, tensors in (("sent", run.sent), ("received", run.received)):
        lines += [f"  {word:<9} {_tensor(tensor)}" for tensor in tensors]
        lines.append(f"  {'':<9} {sum(tensor.nbytes for tensor in tensors):>11,} bytes {word}")
    lines += ["", f"{'Time of a frame, in ms':<24} {'mean':>9} {'longest':>9}"]
    for at, stage in enumerate(StageTimes._fields):
        times = [frame.stages[at] * 1000 for frame in run.frames]
        row = f"  {stage:<22} {sum(times) / len(times):>9.1f} {max(times):>9.1f}   {_STAGES[stage]}"
        lines.append(row.rstrip())
    devices = len({frame.device for frame in run.frames})
    lines += [
        "",
        f"{counted(len(run.frames), 'frame')} of {counted(devices, 'client')}{' at a time' if devices > 1 else ''} "
        f"on {counted(workers, 'worker')} in {run.seconds:.2f} s: "
        f"{len(run.frames) / run.seconds:.2f} frames per second",
    ]
    return "\n".join(lines)


def describe_verdicts(verdicts: Sequence[Verdict]) -> str:
    return "\n".join(["Largest difference of any frame from", *(f"  {verdict}" for verdict in verdicts)])


def _tensor(tensor: TensorSpec) -> str:
    return f"{tensor.nbytes:>11,} bytes  {tensor}"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
