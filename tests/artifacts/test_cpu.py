"""What a library needs of the CPU, and the errors if the CPU lacks it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from zmq_offload.artifacts import cpu
from zmq_offload.artifacts.cpu import CpuNeeds, flags_in, flags_of, this_cpu
from zmq_offload.errors import FailedPrecondition

ZEN4 = ["64bit", "avx", "avx2", "avx512f", "avx512vnni", "fma", "mwaitx", "pku", "sse4.2", "fast-lzcnt"]


def test_only_what_generated_code_can_use_is_needed() -> None:
    needs = CpuNeeds.of("x86_64-unknown-linux-gnu", ZEN4)
    assert needs == CpuNeeds("x86_64", ("avx", "avx2", "avx512f", "avx512vnni", "fma", "sse4.2"))
    assert CpuNeeds.of("arm64-apple-darwin", ["neon", "dotprod", "zcm"]) == CpuNeeds("aarch64", ("dotprod", "neon"))
    assert CpuNeeds.of("riscv64-linux", ["m"]) == CpuNeeds("riscv64", ())


def on(monkeypatch: pytest.MonkeyPatch, architecture: str, flags: str) -> None:
    monkeypatch.setattr(cpu, "this_cpu", lambda: (architecture, frozenset(flags.split())))


def test_a_cpu_that_has_it_all_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "x86_64", "pni sse4_1 sse4_2 avx avx2 fma avx512f avx512_vnni")
    CpuNeeds.of("x86_64", ZEN4).check("it")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "x86_64", "sse4_2 avx avx2 fma")
    with pytest.raises(FailedPrecondition, match="CPU with avx512f, avx512vnni, which this one lacks"):
        CpuNeeds.of("x86_64", ZEN4).check("it")


def test_another_architecture_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "aarch64", "asimd")
    with pytest.raises(FailedPrecondition, match="built for x86_64, this CPU is aarch64"):
        CpuNeeds.of("x86_64", ZEN4).check("it")


def test_a_cpu_without_a_list_of_features_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "x86_64", "")
    CpuNeeds.of("x86_64", ZEN4).check("it")


def test_only_features_of_all_processors_count() -> None:
    assert flags_in("processor: 0\nflags\t\t: avx avx2\n\nprocessor: 1\nflags\t\t: avx\n") == {"avx"}
    assert flags_in("Features\t: asimd fp\n") == {"asimd", "fp"}
    assert flags_in("") == frozenset()
    architecture, _ = this_cpu()
    assert architecture


def test_what_only_older_amd_cpus_have_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "x86_64", "avx avx2 fma sse4a")
    CpuNeeds.of("x86_64", ["avx2", "sse4a"]).check("it")
    with pytest.raises(FailedPrecondition, match="CPU with fma4, tbm, xop"):
        CpuNeeds.of("x86_64", ["avx2", "sse4a", "fma4", "xop", "tbm"]).check("it")  # bdver4, on a Zen


def auxv(*words: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("=QQ", *word) for word in (*words, (0, 0)))


def test_an_arm_tells_its_features_in_the_auxiliary_vector() -> None:
    cortex_a72, cortex_a76 = auxv((3, 64), (16, 0x8FB)), auxv((16, 0x119FFB), (26, 0))
    assert flags_of(cortex_a72) == {"asimd"}
    assert flags_of(cortex_a76) == {"asimd", "asimdhp", "asimddp", "asimdrdm", "atomics"}
    assert flags_of(auxv((16, 2), (26, 1 << 13 | 1 << 14))) == {"asimd", "i8mm", "bf16"}
    assert flags_of(b"") == flags_of(cortex_a72[:7]) == frozenset()


def test_the_auxiliary_vector_counts_more_than_what_an_emulator_leaves_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(Path, "read_bytes", lambda _: auxv((16, 0x8FB)))
    monkeypatch.setattr(Path, "read_text", lambda _: "Features: asimd asimddp")
    assert this_cpu.__wrapped__() == ("aarch64", {"asimd"})
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"")
    assert this_cpu.__wrapped__() == ("aarch64", {"asimd", "asimddp"})
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert this_cpu.__wrapped__()[0] == "x86_64"
