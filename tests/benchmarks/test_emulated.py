"""How instructions of emulated CPUs are counted."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.arm.root import Missing
from tests.benchmarks.emulated import OURS, difference, emulated_cpus, emulator, of_functions, plugin

_PROGRAM = """
#include <unistd.h>

int main(void) {
    for (long steps = 1000; steps <= 3000; steps += 1000) {
        getppid();
        for (long i = steps; i; i--) __asm__ volatile("nop");
        getppid();
    }
}
"""


def test_a_function_has_what_lies_between_its_marks() -> None:
    names = ["outer", "inner", "inner", "outer", "inner", "inner"]
    assert of_functions(names, iter([0, 10, 15, 30, 40, 42])) == {"outer": 30, "inner": 7}


def test_small_values_have_an_absolute_difference() -> None:
    assert difference(np.array([1.0, 2.0]), np.array([1.0, 4.0])) == "5e-01"
    assert difference(np.array([1e-5, 0.0]), np.array([1e-5, 2e-5])) == "2e-05 abs."


@pytest.mark.arm
def test_instructions_between_two_calls_are_counted(tmp_path: Path) -> None:
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    try:
        qemu = emulator()
        library = plugin(qemu, tmp_path)
    except Missing as reason:
        pytest.skip(str(reason))
    if compiler is None:
        pytest.skip("aarch64-linux-gnu-gcc is missing")
    assert "cortex-a72" in emulated_cpus(qemu)
    (tmp_path / "program.c").write_text(_PROGRAM)
    subprocess.run([compiler, "-O1", "-static", "-o", tmp_path / OURS, tmp_path / "program.c"], check=True)
    counts = tmp_path / "counts"
    subprocess.run([qemu, "-plugin", f"{library},out={counts}", str(tmp_path / OURS)], check=True)
    marks = list(map(int, counts.read_text().split()))
    spans = [end - begin for begin, end in zip(marks[::2], marks[1::2], strict=True)]
    each = (spans[1] - spans[0]) / 1000
    assert each in (2, 3, 4)  # the instruction, and those of the loop
    assert spans[2] - spans[1] == spans[1] - spans[0]
