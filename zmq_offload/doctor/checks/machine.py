"""Whether this machine suits: cores, memory, files, shared memory, clock, GPUs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zmq_offload.common.devices import CPU, all_of, number_of
from zmq_offload.common.units import counted, size_text
from zmq_offload.doctor.checks.findings import Finding, Level

_LITTLE_MEMORY = 512 * 1024 * 1024
"""Bytes: a worker with a small model takes 130 MB, and a build ten times that."""

_LITTLE_SHM = 64 * 1024 * 1024 + 1
"""Bytes: Docker's default, 64 MB, does not count as enough."""

_OWN_FILES = 64
"""Files that a program itself has open."""

_FEW_FILES = 4096

_CUDA = 13
"""The major version of CUDA that TVM's runtime is built for."""

_PAST = 1735689600
"""2025-01-01, before this release: a clock that says less is wrong."""

_COARSE = 1e-3
"""Seconds: a clock with larger steps is too coarse for timeouts and timings."""


class Machine(NamedTuple):
    """What the system says of itself."""

    cores: int
    """All cores that are switched on."""
    affinity: int
    """Those that this process may use."""
    quota: float | None
    memory: int
    available: int
    files_soft: int | None
    """Limits of open files; None: there is none."""
    files_hard: int | None
    memfd: str
    """Why no anonymous shared memory can be made; "" if it can."""
    shm: int | None
    """Free bytes of /dev/shm; None: it is missing."""


class Clock(NamedTuple):
    """What the clocks say."""

    wall: float
    """Seconds since 1970."""
    synchronized: bool | None
    """None: the system does not tell."""
    resolution: float
    """Of the monotonic clock."""
    backwards: bool
    """Whether a reading of the monotonic clock was below the one before."""


class Gpus(NamedTuple):
    """NVIDIA's GPUs and their driver."""

    error: str
    """Why the driver cannot be used; "" if it can."""
    driver: str
    """The version of CUDA that the driver has."""
    found: Sequence[tuple[str, str]]
    """Name and compute capability of each."""


def check_machine(facts: Machine, connections: int, ports: int) -> list[Finding]:
    """Check cores, memory and limits, for a gateway with `connections` at each of its `ports`."""
    return [_cores(facts), _memory(facts), _files(facts, connections, ports), _memfd(facts), _shm(facts)]


def _cores(facts: Machine) -> Finding:
    quota = "no quota" if facts.quota is None else f"a quota of {facts.quota:g}"
    text = f"{counted(facts.affinity, 'core')} of {facts.cores}, {quota}"
    if facts.quota is not None and facts.quota < 1:
        return Finding(
            "cores",
            Level.WARNING,
            f"{text}: less than a core, so all threads are stopped for a part of each 100 ms",
            "give the container at least one whole core: docker run --cpus=1, or resources.limits.cpu in Kubernetes",
        )
    if facts.quota is not None and facts.quota < facts.affinity and facts.quota != int(facts.quota):
        return Finding(
            "cores",
            Level.NOTE,
            f"{text}: workers use {counted(int(facts.quota), 'core')}, and the rest of the quota stays unused",
            "give the container a whole number of cores",
        )
    return Finding("cores", Level.OK, text)


def _memory(facts: Machine) -> Finding:
    text = f"{size_text(facts.available)} of {size_text(facts.memory)} are available"
    if facts.available < _LITTLE_MEMORY:
        return Finding(
            "memory",
            Level.WARNING,
            f"{text}: the system may kill a worker when it loads a model",
            "run fewer worker processes (--processes), end other programs, or give the container more memory",
        )
    return Finding("memory", Level.OK, text)


def _files(facts: Machine, connections: int, ports: int) -> Finding:
    raise_it = "raise the hard limit: ulimit -Hn, LimitNOFILE= in a systemd unit, --ulimit nofile= of a container"
    if facts.files_hard is None:
        return Finding("files", Level.OK, "no limit of open files")
    text = f"{facts.files_hard} files may be open (soft limit {facts.files_soft}, which the programs raise)"
    fit = facts.files_hard - _OWN_FILES
    if facts.files_hard < _FEW_FILES:
        return Finding("files", Level.WARNING, f"{text}: a broker or a gateway takes {fit} connections", raise_it)
    if fit < connections * ports:
        return Finding(
            "files",
            Level.NOTE,
            f"{text}: {fit} connections fit, not the {connections} of --max-connections at each of "
            f"{counted(ports, 'port')}",
            f"{raise_it}; or lower --max-connections",
        )
    return Finding("files", Level.OK, text)


def _memfd(facts: Machine) -> Finding:
    if facts.memfd:
        return Finding(
            "shared memory",
            Level.WARNING,
            f"no memory can be shared ({facts.memfd}): tensors between processes of this host are copied",
            "allow memfd_create (a container's seccomp profile may forbid it); --arena-bytes 0 turns sharing off",
        )
    return Finding("shared memory", Level.OK, "processes of this host can share tensors")


def _shm(facts: Machine) -> Finding:
    if facts.shm is None or facts.shm < _LITTLE_SHM:
        text = "/dev/shm is missing" if facts.shm is None else f"/dev/shm has {size_text(facts.shm)} free"
        return Finding(
            "shared memory",
            Level.NOTE,
            f"{text}, which matters to clients of `gateway --system-shared-memory` only",
            "give the container more: docker run --shm-size=1g",
        )
    return Finding("shared memory", Level.OK, f"/dev/shm has {size_text(facts.shm)} free")


def check_clock(facts: Clock) -> list[Finding]:
    """Check that time passes and that the date can be right. Certificates and traces need the date."""
    findings = []
    if facts.backwards or facts.resolution > _COARSE:
        what = "goes backwards" if facts.backwards else f"has steps of {facts.resolution * 1000:g} ms"
        findings.append(
            Finding(
                "clock",
                Level.FAIL,
                f"the monotonic clock {what}, so deadlines cannot be kept",
                "choose another clock source (/sys/devices/system/clocksource/clocksource0/current_clocksource)",
            )
        )
    if facts.wall < _PAST:
        findings.append(
            Finding(
                "clock",
                Level.FAIL,
                "the date is before this release, so certificates do not count as valid yet",
                "set the date, and let a time service keep it: timedatectl set-ntp true",
            )
        )
    elif facts.synchronized is False:
        findings.append(
            Finding(
                "clock",
                Level.NOTE,
                "no time service keeps the clock right; only logs, traces and certificates use the date",
                "let a time service keep it: timedatectl set-ntp true, or chrony",
            )
        )
    known = "synchronized" if facts.synchronized else "the system does not tell whether it is synchronized"
    return findings or [Finding("clock", Level.OK, known)]


def check_gpus(facts: Gpus, devices: Sequence[str], needed: Sequence[tuple[str, str]]) -> list[Finding]:
    """Check the GPUs for a worker's `--device`, and for the versions (name, capability) that need one."""
    wanted = [number for device in all_of(devices, len(facts.found)) if (number := number_of(device)) is not None]
    if facts.error or not facts.found:
        text = f"no GPU of NVIDIA's can be used: {facts.error or 'the driver finds none'}"
        what = [f"--device {','.join(devices)}"] if tuple(devices) != (CPU,) else []
        what += [name for name, _ in needed]
        if what:
            return [
                Finding(
                    "gpu",
                    Level.FAIL,
                    f"{text}; {', '.join(what)} needs one",
                    "install NVIDIA's driver; in a container, docker run --gpus all. Or compile for the CPU: --target",
                )
            ]
        return [Finding("gpu", Level.NOTE, f"{text}; everything here runs on the CPU")]
    names = ", ".join(f"cuda:{n} {name} ({capability})" for n, (name, capability) in enumerate(facts.found))
    findings = [Finding("gpu", Level.OK, f"CUDA {facts.driver}: {names}")]
    there = [number for number in wanted if number < len(facts.found)]
    last = len(facts.found) - 1
    findings += [
        Finding(
            "gpu", Level.FAIL, f"--device cuda:{number} is not there", f"use cuda:0 to cuda:{last}; `nvidia-smi -L`"
        )
        for number in wanted
        if number > last
    ]
    if wanted and int(facts.driver.partition(".")[0]) < _CUDA:
        findings.append(
            Finding(
                "gpu",
                Level.FAIL,
                f"the driver has CUDA {facts.driver}, and workers need {_CUDA}.0",
                "install a newer driver of NVIDIA's, from 580 on",
            )
        )
    if wanted and not there:
        return findings
    # GPUs of one kind fail for one reason, which is said once.
    for title, has in dict.fromkeys(facts.found[number] for number in there or [0]):
        for name, capability in needed:
            if not _runs(capability, has):
                findings.append(
                    Finding(
                        "gpu",
                        Level.FAIL,
                        f"{name} was built for compute capability {capability}, {title} has {has}",
                        "compile it with --target cuda-native on this machine, or with the name of this GPU",
                    )
                )
    if needed and not wanted:
        findings.append(
            Finding(
                "gpu",
                Level.WARNING,
                f"{', '.join(name for name, _ in needed)} needs a GPU, and workers use the CPU by default",
                "start the worker with --device cuda:0, or set ZMQ_OFFLOAD_DEVICE",
            )
        )
    return findings


def _runs(built_for: str, has: str) -> bool:
    """Machine code runs on GPUs of the same major number, and of the same or a later minor one."""
    (major, minor), (found, least) = (tuple(map(int, text.split("."))) for text in (built_for, has))
    return major == found and minor <= least
