"""The parts of a model, compiled for another machine, in a folder that is carried there: a device measures what it
cannot compile.

`halves.build_parts` builds the libraries, `parts.json` says what they are. To measure them, TVM's runtime is enough.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from zmq_offload.artifacts import jsonfile
from zmq_offload.artifacts.cpu import CpuNeeds
from zmq_offload.artifacts.repository import checksum
from zmq_offload.common.scratch import PREFIX, folders_made, scratch_folder
from zmq_offload.console.progress import Say, counter, say_nothing
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.plan.costs import CutPoint
from zmq_offload.plan.files import CutTimes, PlannedModel
from zmq_offload.plan.timing import calls_of, timed, times_of
from zmq_offload.protocol.tensors import ANY, TensorSpec
from zmq_offload.runtime.forks import THREADS
from zmq_offload.runtime.machine import check_tvm_version, load_library, loading
from zmq_offload.runtime.tvm_library import virtual_machine

DESCRIPTION = "parts.json"
FORMAT_VERSION = 1

_SECONDS = 30.0
"""How long runs may take together, as in `halves.measure_halves`; each part runs at least three times."""


class Library(msgspec.Struct, frozen=True):
    """A library of the folder, its checksum, and what each of its functions takes."""

    file: str
    checksum: str
    functions: dict[str, tuple[TensorSpec, ...]]


class Parts(msgspec.Struct, frozen=True):
    """A folder of parts: the model, the version of TVM that built them, and the CPU that they are for.

    `cpu_name` is LLVM's name for it, `target` the user's, if there was one.
    """

    model: PlannedModel
    tvm_version: str
    cpu_name: str
    cpu: CpuNeeds
    points: tuple[CutPoint, ...]
    libraries: tuple[Library, ...]
    target: str | None = None

    def __post_init__(self) -> None:
        functions = {name for library in self.libraries for name in library.functions}
        expected = {f"{side}_{at}" for side in ("before", "after") for at in range(1, len(self.points) - 1)}
        if missing := sorted({"whole", *expected} - functions):
            raise InvalidArgument(f"libraries: no library has the function {missing[0]!r}")
        if len(self.points) < 2:
            raise InvalidArgument(
                f"points has {len(self.points)} points; expected the inputs, the outputs, and the cuts"
            )
        if not self.cpu_name.isprintable():
            raise InvalidArgument(f"cpu_name is {self.cpu_name!r}; expected a name of LLVM")
        starts = {f"after_{at}": point.tensors for at, point in enumerate(self.points)}
        for name, specs in (item for library in self.libraries for item in library.functions.items()):
            first = self.points[0].tensors if name.startswith(("whole", "before_")) else starts.get(name, specs)
            if specs != first or any(ANY in spec.shape for spec in specs):
                raise InvalidArgument(f"libraries: the function {name!r} takes other tensors than its point has")

    def write(self, folder: Path) -> None:
        described = {"format_version": FORMAT_VERSION, **jsonfile.to_object(self)}
        (folder / DESCRIPTION).write_bytes(jsonfile.encode(described))

    @classmethod
    def read(cls, folder: Path) -> Parts:
        """Raises FailedPrecondition for a folder that has no parts, or whose files are damaged."""
        file = folder / DESCRIPTION
        try:
            value = jsonfile.parse(file.read_bytes())
            jsonfile.check_format_version(value, FORMAT_VERSION)
            found = jsonfile.convert(value, cls)
            for library in found.libraries:
                for spec in (spec for specs in library.functions.values() for spec in specs):
                    spec.check()
                if Path(library.file).name != library.file or checksum(folder / library.file) != library.checksum:
                    raise InvalidArgument(f"{library.file} is not the file that was written with it")
        except OSError as error:
            raise FailedPrecondition(f"{error.filename} cannot be read: {error.strerror or error}") from None
        except InvalidArgument as error:
            again = "make the folder again with: zmq-offload profile MODEL --parts DIR"
            raise FailedPrecondition(f"{file} is damaged: {error}; {again}") from None
        return found


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """A folder that becomes `folder` if the body succeeds. Raises FailedPrecondition if that cannot be."""
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise FailedPrecondition(f"{folder} exists; name a folder that does not, or remove it")
    try:
        with folders_made(folder.parent), scratch_folder(folder.parent, PREFIX) as scratch:
            made = scratch / "parts"
            made.mkdir()
            yield made
            made.rename(folder)
    except OSError as error:
        raise FailedPrecondition(f"{folder} cannot be written: {error.strerror or error}") from None


def measure_parts(folder: Path, threads: int, repeat: int, say: Say = say_nothing) -> CutTimes:
    """The times of the parts in a folder on this machine, for a plan on another one.

    Raises FailedPrecondition for a folder without parts, or with parts for another CPU or of another version of TVM.
    """
    parts = Parts.read(folder)
    check_tvm_version(folder, parts.tvm_version)
    parts.cpu.check(str(folder))
    THREADS.use()
    tell = counter(say, "libraries")
    taken: dict[str, float] = {}
    for at, library in enumerate(parts.libraries):
        tell(at, len(parts.libraries))
        with loading(folder / library.file):
            machine = virtual_machine(load_library(folder / library.file))
            calls = calls_of(machine, library.functions)
        taken |= timed(calls, repeat, _SECONDS / len(parts.libraries))
    name = f"{platform.node()} ({parts.cpu_name})"
    return CutTimes(parts.model, name, threads, parts.points, times_of(parts.points, taken), parts.target)
