"""What a device costs on disk, in memory and at its start: `python -m tests.benchmarks.device`, `--arm` emulated.

Each way loads the same device bundle, with a fabric on this machine, and makes one call. CPU time is that of the
process until its first result, memory what it has then: resident (RSS), and proportional (PSS), which divides a page
among the processes that have it. The fabric's workers have the files of the installed package. The ways take turns.

With `--arm`, programs of the arm64 root of `tests.arm.root` run under qemu-user: times are those of the emulator, and
memory is without the emulator's program and translated code, but with the rest of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.arm.root import Missing, Root, arm_root, emulator
from tests.export.test_image import DEVICE
from tests.support import onnx_models
from tests.support.processes import ROOT, eventually, running_broker, running_workers
from tests.support.wheels import installed_wheels
from zmq_offload import Client
from zmq_offload.compile import compile_model
from zmq_offload.export import write_image

APP = """
import sys
import numpy
import zmq_offload
with zmq_offload.load(sys.argv[1], sys.argv[2], timeout=60) as model:
    model(numpy.ones((1, 3, 96, 96), "f4"))
    print("done", flush=True)
    sys.stdin.read()
"""
CPU = "cortex-a72"
ARM = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": CPU}


class Way(NamedTuple):
    """A way to run a bundle: the command, to which bundle and broker are added, and what is installed for it."""

    name: str
    command: list[str]
    environment: dict[str, str]
    disk: int
    after: Sequence[str] = ()


def disk(*places: Path) -> int:
    """Bytes of files and folders."""
    files = [file for place in places for file in (place.rglob("*") if place.is_dir() else [place])]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def installed(site: Path) -> int:
    """Bytes of what pip installs for a device, this package included."""
    found = (f for f in importlib.metadata.distributions(path=[str(site)]) if f.metadata["Name"].lower() in NAMES)
    places = {Path(str(dist.locate_file(file))) for dist in found for file in dist.files or ()}
    return disk(*(place for place in places if place.exists()), ROOT / "zmq_offload")


NAMES = {*DEVICE, *(name.replace("-", "_") for name in DEVICE)}


def here(folder: Path, image: Path) -> list[Way]:
    """The ways on this machine."""
    site = Path(sysconfig.get_path("platlib"))
    app = str(folder / "app.py")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TVM_USE"))}
    python = [sys.executable, app]
    ways = [
        Way("the whole package, its compiler loaded", python, kept | {"TVM_USE_RUNTIME_LIB": "0"}, installed(site)),
        Way("pip install 'zmq-offload[device]'", python, kept, installed(site)),
        Way(
            "zmq-offload image",
            [str(image / "run"), "-s", app],
            kept | {"PATH": f"{folder}:{kept['PATH']}"},
            disk(image),
        ),
    ]
    (folder / f"python{sys.version_info[0]}.{sys.version_info[1]}").symlink_to(Path(sys.executable).resolve())
    libraries = [site / "tvm/lib/libtvm_runtime.so", site / "tvm_ffi/lib/libtvm_ffi.so", *site.glob("pyzmq.libs/*.so*")]
    if shutil.which("cmake") and shutil.which("g++") and libraries[2:]:
        zmq = next(library for library in libraries if library.name.startswith("libzmq"))
        options = [
            f"-DTVM={site / 'tvm'}",
            f"-DTVM_FFI={site / 'tvm_ffi'}",
            f"-DZMQ={zmq}",
            "-DCMAKE_BUILD_TYPE=Release",
        ]
        for step in (["cmake", "-S", str(ROOT / "examples/cpp"), *options], ["make"]):
            subprocess.run(step, cwd=folder, check=True, capture_output=True)
        extra = site / "tvm/lib/libtvm_runtime_extra.so"
        size = disk(folder / "offload", extra, *libraries)
        ways.append(
            Way("examples/cpp", [str(folder / "offload")], kept, size, [f"x={folder / 'x'}", "--repeat", "9999999"])
        )
    return ways


def emulated(root: Root, folder: Path, image: Path) -> list[Way]:
    """The ways in an arm64 root."""
    command = [*root.command(["python3"], cpu=CPU), "-S", str(folder / "app.py")]
    whole, small = (
        root.environment(more) for more in ({}, {"PYTHONPATH": str(image / "site"), "OPENBLAS_NUM_THREADS": "1"})
    )
    return [
        Way(
            "the whole package, its compiler loaded",
            command,
            whole | {"TVM_USE_RUNTIME_LIB": "0"},
            installed(root.folder / "opt/site"),
        ),
        Way("pip install 'zmq-offload[device]'", command, whole, installed(root.folder / "opt/site")),
        Way("zmq-offload image", command, small, disk(image)),
    ]


def memory(pid: int) -> tuple[float, float]:
    """Megabytes of a process: resident, proportional. Without an emulator's program and code."""
    rss = pss = 0
    counts = True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            counts = "qemu-" not in words[-1] and words[1][:3] != "rwx"
        elif counts and words[0] in ("Rss:", "Pss:"):
            rss, pss = (rss + int(words[1]), pss) if words[0] == "Rss:" else (rss, pss + int(words[1]))
    return rss / 1024, pss / 1024


def cpu_seconds(pid: int) -> float:
    """Of the threads that it has."""
    times = [file.read_text().split() for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(nanoseconds) for nanoseconds, *_ in times) / 1e9


def start(way: Way, bundle: Path, broker: str) -> tuple[float, float, float]:
    """Start it and wait for its first result. Returns seconds of CPU, megabytes resident and proportional."""
    words = [*way.command, str(bundle), broker, *way.after]
    with subprocess.Popen(
        words, env=way.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline(), words
            return cpu_seconds(process.pid), *memory(process.pid)
        finally:
            process.kill()


def measure(ways: Sequence[Way], dist: Path, rounds: int) -> Mapping[str, list[tuple[float, float, float]]]:
    found: dict[str, list[tuple[float, float, float]]] = {way.name: [] for way in ways}
    with running_broker() as fabric, running_workers(fabric.backend, "--repository", str(dist / "repository")):
        with Client(fabric.frontend) as client:
            eventually(client.models, timeout=60)
        for _ in range(rounds):
            for way in ways:
                found[way.name].append(start(way, dist / "device", fabric.frontend))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.device", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--arm", action="store_true", help="an arm64 root under qemu-user, not this machine")
    parser.add_argument("--rounds", type=int, default=5, help="starts of each way (default: 5)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "app.py").write_text(APP)
        (folder / "x").write_bytes(b"\0\0\x80\x3f" * (3 * 96 * 96))
        net = onnx_models.convnet(folder / "net.onnx")
        target = ARM if given.arm else None
        shapes = {"x": (1, 3, 96, 96)}
        compile_model(net, inputs=shapes, cut=["features"], name="net", device_target=target, output=folder / "dist")
        try:
            root = arm_root() if given.arm else None
        except Missing as reason:
            sys.exit(f"{parser.prog}: {reason}")
        site = root.folder / "opt/site" if root else Path(sysconfig.get_path("platlib"))
        wheels = installed_wheels(folder / "wheels", DEVICE, site)
        python = "3.11" if root else f"{sys.version_info[0]}.{sys.version_info[1]}"
        machine = "aarch64" if root else os.uname().machine
        image = write_image(folder / "image", machine=machine, python=python, wheels=wheels).folder
        ways = emulated(root, folder, image) if root else here(folder, image)
        if root:
            print(
                subprocess.run([emulator(), "--version"], capture_output=True, text=True, check=True).stdout.split(
                    "\n"
                )[0]
            )
        print("| way | disk MB | CPU s to the first result | RSS MB | PSS MB |\n|---|---|---|---|---|")
        for name, rows in measure(ways, folder / "dist", given.rounds).items():
            size = next(way.disk for way in ways if way.name == name)
            seconds, rss, pss = (statistics.median(column) for column in zip(*rows, strict=True))
            print(f"| {name} | {size / 1e6:.0f} | {seconds:.3f} | {rss:.0f} | {pss:.0f} |")


if __name__ == "__main__":
    main()
