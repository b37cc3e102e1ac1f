"""The demo from its first to its last step."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zmq_offload.artifacts.manifest import Manifest
from zmq_offload.common.cores import usable_cores
from zmq_offload.compile.interrupt import say_interrupted
from zmq_offload.console.progress import Progress
from zmq_offload.demo import page, picture, report
from zmq_offload.demo.build import (
    STEPS,
    Built,
    Job,
    cached,
    check_cache,
    compile_into,
    default_cache,
)
from zmq_offload.demo.check import ORT_BAR, TVM_BAR, Verdict, compare, run_onnxruntime, run_uncut
from zmq_offload.demo.items import Array, Devices, Run
from zmq_offload.demo.regions import find_regions
from zmq_offload.errors import InvalidArgument, OffloadError
from zmq_offload.testing.fabric import start_fabric
from zmq_offload.testing.processes import Children, Interrupts

DEVICES = 3
WORKERS = 2

_OWN_STEPS = 3


@dataclass(frozen=True)
class Options:
    """What the user asks for; `zmq-offload demo --help` explains each."""

    model: Path
    cut: tuple[str, ...]
    image: Path | None
    side: int
    frames: int
    cache: Path | None
    output: Path
    quiet: bool


def play(options: Options) -> int:
    """The demo; its exit code: 0, 1 if the results differ too much, 128 + the signal's number if it was interrupted."""
    with Interrupts() as interrupts:
        children = Children(interrupts)
        try:
            with children:
                return _play(options, children)
        except KeyboardInterrupt:
            say_interrupted()
            return 128 + (interrupts.number or 0)
        finally:
            # The first signal may have come in the middle of leaving `with children`; no second one interrupts.
            children.stop()


def _play(options: Options, children: Children) -> int:
    images = [picture.read(options.image)] if options.image else [page.render(n).image for n in range(DEVICES)]
    file = picture.target_file(options.output)
    cache = options.cache or default_cache()
    check_cache(cache)
    size = picture.network_size(images[0].size, options.side)
    tensors = [picture.to_tensor(image, size) for image in images]
    job = Job(options.model, size, options.cut)
    print(report.describe_job(job, len(images)), flush=True)

    built = cached(job, cache)
    if built is None:
        steps = STEPS + _OWN_STEPS
        built = compile_into(job, cache, children, steps, quiet=options.quiet)
        progress = Progress(steps, done=STEPS, quiet=options.quiet)
    else:
        progress = Progress(_OWN_STEPS, quiet=options.quiet)
    print(report.describe_built(built), flush=True)
    _check_output(built, size)

    run = _run(built, tensors, options.frames, children, cache, progress)
    with progress.step("run the uncut model, in TVM and in ONNX Runtime"):
        verdicts = _check(run, built, options.model, tensors)

    drawn = next(frame for frame in run.frames if frame.picture == 0)
    regions = find_regions(drawn.output[0, 0], images[0].size)
    picture.draw(images[0], regions).save(file)
    print("\n" + report.describe_run(run, WORKERS))
    print("\n" + report.describe_verdicts(verdicts))
    print(f"\n{len(regions)} text regions found, drawn in {file}")
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def _run(
    built: Built, pictures: Sequence[Array], frames: int, children: Children, cache: Path, progress: Progress
) -> Run:
    # Each device is a thread, and has a thread pool of TVM's own: together they must not exceed the cores.
    cores = usable_cores()
    os.environ.setdefault("TVM_NUM_THREADS", str(max(1, cores // DEVICES)))
    with _logs(cache) as logs:
        with progress.step(f"start a broker and {WORKERS} workers"):
            broker = start_fabric(children, built.repository, WORKERS, logs)
        with progress.step(f"run {frames} frames, {DEVICES} clients at a time"):
            run = Devices(built.device, broker, pictures, DEVICES, frames).run(children.check)
        children.stop()
    return run


def _check(run: Run, built: Built, model: Path, pictures: Sequence[Array]) -> list[Verdict]:
    return [
        compare("the uncut model in TVM", run.frames, run_uncut(built.uncut, pictures), TVM_BAR),
        compare("ONNX Runtime", run.frames, run_onnxruntime(model, pictures), ORT_BAR),
    ]


def _check_output(built: Built, size: tuple[int, int]) -> None:
    outputs = Manifest.read(built.device).outputs
    wanted = (1, 1, size[1], size[0])
    if [output.shape for output in outputs] != [wanted]:
        raise InvalidArgument(
            f"--model: a text detection network has one output, a map of the picture's size {list(wanted)}; "
            f"this one has {'; '.join(map(str, outputs))}"
        )


@contextmanager
def _logs(cache: Path) -> Iterator[Path]:
    """A folder for what broker and workers say, kept and named to the user if something fails."""
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=cache))
    try:
        yield folder
    except OffloadError as error:
        raise type(error)(f"{error.message} (what the broker and the workers said is in {folder})") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
