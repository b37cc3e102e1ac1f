"""Compiles the demo's models and keeps them between runs.

A process of its own compiles (`python -m zmq_offload.demo.build`). TVM's compiler runs for seconds without a look at
Ctrl-C, but a process can be ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from zmq_offload.artifacts.manifest import Manifest
from zmq_offload.artifacts.repository import Repository, checksum
from zmq_offload.common.scratch import scratch_folder
from zmq_offload.common.version import __version__
from zmq_offload.console.programs import module
from zmq_offload.console.progress import Progress
from zmq_offload.console.silence import silenced
from zmq_offload.demo.model import INPUT
from zmq_offload.errors import FailedPrecondition, Internal, OffloadError, from_status
from zmq_offload.testing.processes import Children, kill_session

NAME = "ocr_head"
STEPS = 5
"""Steps of the progress that compiling shows."""

_FAILURE = "failure.json"


@dataclass(frozen=True)
class Job:
    """An ONNX file to compile for a picture of `size` (width, height), cut at the tensors `cut`."""

    model: Path
    size: tuple[int, int]
    cut: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        width, height = self.size
        return 1, 3, height, width

    def key(self) -> str:
        """A name for the result. It changes with everything that the result depends on."""
        from zmq_offload.compile.target import toolchain

        parts = [checksum(self.model), self.shape, self.cut, toolchain(), __version__]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Built:
    """A folder with the device bundle, the model repository and the library of the uncut model."""

    folder: Path

    @property
    def device(self) -> Path:
        return self.folder / "device"

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def uncut(self) -> Path:
        return self.folder / "uncut.so"


def default_cache() -> Path:
    """The folder for caches of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zmq-offload"


def cached(job: Job, cache: Path) -> Built | None:
    """The result of an earlier run for `job`. A damaged one, or one of another format, is removed."""
    built = Built(cache / job.key())
    if not built.folder.is_dir():
        return None
    try:
        Manifest.read(built.device).check_library(built.device)
        repository = Repository(built.repository)
        for name in repository.models():
            for version in repository.versions(name):
                repository.read(name, version)
    except FailedPrecondition:
        shutil.rmtree(built.folder, ignore_errors=True)
        return None
    return built


def compile_into(job: Job, cache: Path, children: Children, steps: int, *, quiet: bool) -> Built:
    """Compile in a child process, which shows its progress as the first of `steps` steps.

    A folder appears in the cache when it is complete. Errors of the compiler are raised here.
    """
    with scratch_folder(cache, ".building-") as scratch:
        draft = scratch / "draft"
        draft.mkdir()
        order = [str(job.model), job.size, job.cut, str(draft), steps, quiet]
        command = [*module("zmq_offload.demo.build")[1:], json.dumps(order)]
        process = children.start("compiler", command, stop=kill_session)
        try:
            code = process.wait()
        finally:
            children.stop()  # an interrupted compiler must not write while the draft is removed
        failure = draft / _FAILURE
        if failure.exists():
            raise from_status(*json.loads(failure.read_text()))
        if code:
            raise Internal(f"the compiler process ended with code {code}")
        final = cache / job.key()
        with contextlib.suppress(OSError):  # another demo was faster
            draft.rename(final)
    return Built(final)


def check_cache(cache: Path) -> None:
    """Raises FailedPrecondition if the cache cannot be written."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        raise FailedPrecondition(f"{cache} cannot be written: {error.strerror or error}; choose --cache DIR") from None


def main() -> int:
    """Compile what the first argument describes, the JSON that `compile_into` passes."""
    from zmq_offload.compile.api import compile_model
    from zmq_offload.compile.uncut import compile_uncut

    model, (width, height), cut, folder, steps, quiet = json.loads(sys.argv[1])
    job = Job(Path(model), (width, height), tuple(cut))
    built = Built(Path(folder))
    try:
        with silenced():
            progress = Progress(steps, quiet=quiet)
            compile_model(
                job.model, inputs={INPUT: job.shape}, cut=job.cut, name=NAME, output=built.folder, progress=progress
            )
            with progress.step("compile the uncut model, to compare with"):
                compile_uncut(job.model, built.uncut, inputs={INPUT: job.shape})
    except OffloadError as error:
        (built.folder / _FAILURE).write_text(json.dumps([error.code.value, error.message]))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
