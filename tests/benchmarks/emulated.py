"""Instructions a run on emulated ARM CPUs: `python -m tests.benchmarks.emulated`.

For each network and CPU: compiled by the rules, by TVM's default pipeline, and ONNX Runtime's aarch64 wheel. One
thread, batch 1. QEMU's user mode runs all of them; a plugin, `count_instructions.c`, counts the instructions of one run
that follows another. Counts are not times: a CPU runs several instructions in a cycle, and waits for memory.

It needs qemu-aarch64 with plugins (Debian's package qemu-user, not qemu-user-static), a C compiler for this machine,
and what `tests.arm.root` needs, which makes a folder with Debian's Python for arm64 and the wheels.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.arm.root import Missing, Root, arm_root
from tests.benchmarks.models import CASES, Case
from tests.benchmarks.schedules import prepared

HERE = Path(__file__).parent
CPUS = ("cortex-a72", "cortex-a76", "neoverse-v1")
_CPU_HELP = f"LLVM's name of a CPU, and QEMU's after = if it is another, such as max (default: {', '.join(CPUS)})"
OURS, ORT, DEFAULT = "ours", "onnxruntime", "default"

_CPUINFO = """processor\t: 0
Features\t: fp asimd
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
"""ONNX Runtime reads this file at its start; that of an x86 machine would end it. It asks the kernel for features."""


@dataclass
class Counted:
    """One run: its instructions, those of each function in it if they were asked for, or why there is no run."""

    instructions: int = 0
    functions: dict[str, int] | None = None
    error: str | None = None


def emulator() -> str:
    """QEMU's user mode with plugins. Raises Missing."""
    found = shutil.which("qemu-aarch64")
    shown = subprocess.run([found, "-help"], capture_output=True, text=True, check=False).stdout if found else ""
    if found is None or "-plugin" not in shown:
        raise Missing("qemu-aarch64 with plugins, of Debian's package qemu-user, is missing")
    return found


def emulated_cpus(qemu: str) -> set[str]:
    shown = subprocess.run([qemu, "-cpu", "help"], capture_output=True, text=True, check=False)
    return set(shown.stdout.split()[2:])


def root_with_onnxruntime() -> Root:
    """The arm64 root, with ONNX Runtime and one CPU in the places where it looks for CPUs. Raises Missing."""
    import onnxruntime

    root = arm_root([f"onnxruntime=={onnxruntime.__version__}"])
    files = {"proc/cpuinfo": _CPUINFO, **{f"sys/devices/system/cpu/{n}": "0\n" for n in ("possible", "present")}}
    for name, text in files.items():
        (root.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (root.folder / name).write_text(text)
    return root


def plugin(qemu: str, folder: Path) -> Path:
    """Compile the plugin for the version of QEMU's plugin interface that `qemu` has. Raises Missing."""
    compiler, library = shutil.which("cc"), folder / "count_instructions.so"
    if compiler is None:
        raise Missing("a C compiler is missing")
    for version in range(1, 7):
        options = ["-shared", "-fPIC", "-O2", "-fvisibility=hidden", f"-DAPI={version}", "-o", str(library)]
        subprocess.run([compiler, *options, str(HERE / "count_instructions.c")], check=True)
        # A plugin of another version ends QEMU before it looks for the program.
        tried = [qemu, "-plugin", f"{library},out={folder / 'tried'}", str(folder / "no program")]
        if "version" not in subprocess.run(tried, capture_output=True, text=True, check=False).stderr:
            return library
    raise Missing(f"{qemu} has an interface for plugins that is newer than the one this plugin knows")


def jobs_of(case: Case, cpu: str, folder: Path, default: bool, functions: bool) -> list[dict[str, Any]]:
    """Compile one network for a CPU, and return what is to be run."""
    import tvm

    from zmq_offload.compile.build import build_library, export
    from zmq_offload.compile.onnx.importer import import_uncut
    from zmq_offload.compile.target import resolve_target

    target = resolve_target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": cpu, "num-cores": 1})
    model = prepared(case)
    name = model.graph.input[0].name
    files = {OURS: folder / "ours.so", ORT: folder / "model.onnx", DEFAULT: folder / "default.so"}
    onnx.save(model, files[ORT])
    inputs = folder / "inputs.npz"
    np.savez(inputs, **{name: np.random.default_rng(0).standard_normal(case.shape).astype("float32")})
    module = import_uncut(files[ORT], {name: case.shape})
    build_library(module, files[OURS], target)
    if default:
        with target:
            export(tvm.compile(module, target), files[DEFAULT], target)
    # TVM's default takes long, and the memory that its first run asks for does not count beside it.
    return [
        {
            "label": label,
            "file": str(file),
            "inputs": str(inputs),
            "warm": label != DEFAULT,
            "functions": functions and label == OURS,
        }
        for label, file in files.items()
        if default or label != DEFAULT
    ]


def count(root: Root, qemu: str, library: Path, cpu: str, folder: Path, jobs: Sequence[Any]) -> dict[str, Counted]:
    """Run `jobs` on an emulated CPU."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    counts = folder / "counts"
    command = root.command(["python3", HERE / "emulated_runs.py", folder], cpu)
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "TVM_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    done = subprocess.run(
        [qemu, "-plugin", f"{library},out={counts}", *command[1:]],
        env=root.environment(threads),
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    )
    marks = map(int, counts.read_text().split())
    return {line["label"]: _counted(line, marks) for line in map(json.loads, done.stdout.splitlines())}


def _counted(line: dict[str, Any], marks: Iterator[int]) -> Counted:
    """What one line of `emulated_runs` and the next of the plugin's counts tell."""
    if "error" in line:
        return Counted(error=line["error"])
    begin = next(marks)
    functions = of_functions(line["functions"], marks) if line["functions"] is not None else None
    return Counted(next(marks) - begin, functions)


def of_functions(names: Iterable[str], marks: Iterator[int]) -> dict[str, int]:
    """The instructions of each function; each name comes before and after its call, with one mark each."""
    found: dict[str, int] = {}
    running: list[tuple[str, int]] = []
    for name in names:
        mark = next(marks)
        if running and running[-1][0] == name:
            found[name] = found.get(name, 0) + mark - running.pop()[1]
        else:
            running.append((name, mark))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """The largest difference, relative to the largest value; absolute where all values are below 0.001."""
    off, largest = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
    return f"{off:.0e} abs." if largest < 1e-3 else f"{off / largest:.0e}"


def row(case: Case, counted: dict[str, Counted], folder: Path, default: bool) -> str:
    """A row of the table, in millions of instructions."""
    failed = [f"{label}: {one.error}" for label, one in counted.items() if one.error is not None]
    if failed:
        return f"| {case.name} | failed: {'; '.join(failed)} |"
    ours, theirs = counted[OURS].instructions, counted[ORT].instructions
    cells = [case.name, f"{ours / 1e6:.1f}", f"{theirs / 1e6:.1f}", f"{ours / theirs:.2f}"]
    if default:
        cells += [f"{counted[DEFAULT].instructions / 1e6:.0f}", f"{ours / counted[DEFAULT].instructions:.3f}"]
    results = (np.load(folder / f"{label}.npz")["arr_0"] for label in (OURS, ORT))
    return f"| {' | '.join(cells)} | {difference(*results)} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.emulated",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--cpu", action="append", help=_CPU_HELP)
    parser.add_argument("--default", action="store_true", help="also TVM's default pipeline (slow)")
    parser.add_argument("--functions", action="store_true", help="also the instructions of each function of ours")
    args = parser.parse_args(argv)
    try:
        qemu, root = emulator(), root_with_onnxruntime()
        with tempfile.TemporaryDirectory() as made:
            library = plugin(qemu, Path(made))
            for names in args.cpu or CPUS:
                _table(*_both(names), args, qemu, root, library, Path(made))
    except Missing as reason:
        sys.exit(f"{parser.prog}: {reason}")


def _both(names: str) -> tuple[str, str]:
    """LLVM's and QEMU's name of a CPU, from NAME or NAME=QEMU'S."""
    cpu, _, emulated = names.partition("=")
    return cpu, emulated or cpu


def _table(cpu: str, emulated: str, args: argparse.Namespace, qemu: str, root: Root, library: Path, made: Path) -> None:
    if emulated.split(",")[0] not in emulated_cpus(qemu):
        print(f"{cpu}: skipped, because {qemu} does not emulate {emulated}", flush=True)
        return
    head = [
        cpu,
        "ours, M",
        "ONNX Runtime, M",
        "ratio",
        *(["default, M", "ratio"] if args.default else []),
        "difference",
    ]
    print(f"| {' | '.join(head)} |", "|" + "---|" * len(head), sep="\n", flush=True)
    for at, case in enumerate(CASES):
        if args.only.lower() in case.name.lower():
            folder = made / f"{cpu}-{at}"
            folder.mkdir()
            try:
                counted = count(
                    root, qemu, library, emulated, folder, jobs_of(case, cpu, folder, args.default, args.functions)
                )
            except FileNotFoundError as reason:
                print(f"| {case.name} | skipped: {reason} |", flush=True)
                continue
            print(row(case, counted, folder, args.default), flush=True)
            for name, instructions in (counted[OURS].functions or {}).items():
                print(f"    {instructions / 1e6:9.2f} M {name}", flush=True)


if __name__ == "__main__":
    main()
