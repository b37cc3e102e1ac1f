"""The course of the demo: compile, run on devices and workers, check, draw."""

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
from zmq_offload.console.progress import Progress, counter
from zmq_offload.demo import picture, report
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
from zmq_offload.demo.items import Devices, Results
from zmq_offload.demo.regions import find_regions
from zmq_offload.errors import InvalidArgument, OffloadError
from zmq_offload.protocol.payload import Array
from zmq_offload.testing.fabric import start_fabric
from zmq_offload.testing.processes import Children, Interrupts

DEVICES = 3
WORKERS = 2

_OWN_STEPS = 3


@dataclass(frozen=True)
class Options:
    """The options of `zmq-offload demo`, which its help explains."""

    model: Path
    cut: tuple[str, ...]
    image: Path | None
    side: int
    items: int
    cache: Path | None
    output: Path
    quiet: bool


def play(options: Options) -> int:
    """Run the demo. Returns the exit code: 0, 1 if results differ too much, or 128 + the number of a signal."""
    with Interrupts() as interrupts:
        children = Children(interrupts)
        try:
            with children:
                return _play(options, children)
        except KeyboardInterrupt:
            say_interrupted()
            return 128 + (interrupts.number or 0)
        finally:
            # The first signal may have interrupted `with children` while it stopped them; a second one does not.
            children.stop()


def _play(options: Options, children: Children) -> int:
    images = [picture.read(options.image)] if options.image else picture.pages()
    file = picture.target_file(options.output)
    cache = options.cache or default_cache()
    check_cache(cache)
    size = picture.network_size(images[0].size, options.side)
    tensors = [picture.to_tensor(image, size) for image in images]
    job = Job(options.model, size, options.cut)
    print(report.describe_job(job, len(images)), flush=True)

    built, progress = _built(job, cache, children, quiet=options.quiet)
    print(report.describe_built(built), flush=True)
    _check_output(built, size)

    results = _run(built, tensors, options.items, children, cache, progress)
    with progress.step("run the uncut model, in TVM and in ONNX Runtime"):
        verdicts = _check(results, built, options.model, tensors)

    shown = next(item for item in results.items if item.picture == 0)
    regions = find_regions(shown.output, images[0].size)
    picture.draw(images[0], regions).save(file)
    print("\n" + report.describe_results(results, WORKERS))
    print("\n" + report.describe_verdicts(verdicts))
    print(f"\n{len(regions)} text regions found, drawn in {file}")
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def _built(job: Job, cache: Path, children: Children, *, quiet: bool) -> tuple[Built, Progress]:
    """What the demo runs, from the cache or compiled, and the progress of the steps that follow."""
    built = cached(job, cache)
    if built is not None:
        return built, Progress(_OWN_STEPS, quiet=quiet)
    steps = STEPS + _OWN_STEPS
    return compile_into(job, cache, children, steps, quiet=quiet), Progress(steps, done=STEPS, quiet=quiet)


def _run(
    built: Built, pictures: Sequence[Array], items: int, children: Children, cache: Path, progress: Progress
) -> Results:
    # Each device is a thread with a pool of TVM's threads; all pools together get as many threads as there are cores.
    cores = usable_cores()
    os.environ.setdefault("TVM_NUM_THREADS", str(max(1, cores // DEVICES)))
    with _logs(cache) as logs:
        with progress.step(f"start a broker and {WORKERS} workers"):
            broker = start_fabric(children, built.repository, WORKERS, logs)
        with progress.step(f"run {items} items, {DEVICES} devices at a time") as say:
            devices = Devices(built.device, broker, pictures, DEVICES, items)
            results = devices.run(children.check, counter(say, "items"))
        children.stop()
    return results


def _check(results: Results, built: Built, model: Path, pictures: Sequence[Array]) -> list[Verdict]:
    return [
        compare("the uncut model in TVM", results.items, run_uncut(built.uncut, pictures), TVM_BAR),
        compare("ONNX Runtime", results.items, run_onnxruntime(model, pictures), ORT_BAR),
    ]


def _check_output(built: Built, size: tuple[int, int]) -> None:
    outputs = Manifest.read(built.device).outputs
    wanted = (1, 1, size[1], size[0])
    if [output.shape for output in outputs] != [wanted]:
        raise InvalidArgument(
            f"--model: outputs of the network are {'; '.join(map(str, outputs))}; "
            f"a text detection network has one of shape {list(wanted)}"
        )


@contextmanager
def _logs(cache: Path) -> Iterator[Path]:
    """A folder for the logs of broker and workers. It is kept, and named in the error, if something fails."""
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=cache))
    try:
        yield folder
    except OffloadError as error:
        raise type(error)(f"{error.message} (the logs of broker and workers are in {folder})") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
