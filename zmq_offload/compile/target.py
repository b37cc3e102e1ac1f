"""TVM targets: what the user gives is checked, and the default is this machine's CPU."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import tvm
from tvm.target import codegen

from zmq_offload.artifacts.cpu import CpuNeeds
from zmq_offload.artifacts.gpu import GpuNeeds
from zmq_offload.common.cores import usable_cores
from zmq_offload.common.suggest import did_you_mean
from zmq_offload.compile.boards import BOARDS, HOST, closest, old_target_as_json
from zmq_offload.compile.cuda.names import NAMES, PREFIX, gpu_target, is_gpu
from zmq_offload.errors import InvalidArgument

TargetLike: TypeAlias = str | Mapping[str, object] | tvm.target.Target | None
"""A target as a user gives it: the name of a board, TVM's JSON, a TVM target, or None for this machine's CPU."""

_MORE_ARCHITECTURES = {"amd64", "arm64", "ppc64", "ppc64le"}
"""Architectures that LLVM has under other names, too."""
_OF_32_BITS = re.compile(r"(arm(?!64)|thumb|i[3-6]86)")
_LISTED = "`zmq-offload compile --list-targets` lists the names"


def host_target() -> tvm.target.Target:
    """The target for this machine's CPU, by LLVM's name for it (TVM refuses "native"), with the usable cores."""
    cores = usable_cores()
    return tvm.target.Target({"kind": "llvm", "mcpu": str(codegen.llvm_get_system_cpu()), "num-cores": cores})


def resolve_target(given: TargetLike) -> tvm.target.Target:
    """Return the TVM target of a CPU that the user gave.

    Raises InvalidArgument for a target that TVM does not know, for one that is not a CPU, and for a CPU that TVM's LLVM
    does not know (LLVM would compile for a generic CPU without a word).
    """
    if given is None or given == HOST:
        return host_target()
    if isinstance(given, str) and given.startswith(PREFIX):
        raise InvalidArgument(f"target {given!r} is a GPU; only --target, for the workers, can name one")
    target = given if isinstance(given, tvm.target.Target) else _made(given)
    if target.kind.name != "llvm":
        raise InvalidArgument(
            f"target {given!r} is of kind {target.kind.name}; only CPUs are supported (kind "
            f"llvm), and for the workers the GPUs {', '.join(NAMES)}"
        )
    cpu, triple = target.attrs.get("mcpu"), triple_of(target)
    if _OF_32_BITS.match(triple):
        raise InvalidArgument(
            f"target {given!r} is of 32 bits ({triple}); use one of 64 bits, as a Raspberry Pi runs from the 3 on"
        )
    architecture = triple.partition("-")[0].lower()
    if architecture not in _MORE_ARCHITECTURES.union(map(str, codegen.llvm_get_targets())):  # TVM would crash
        raise InvalidArgument(
            f"target {given!r}: LLVM does not know the architecture {architecture!r} of the triple {triple!r}; "
            "write one such as aarch64-linux-gnu"
        )
    if cpu is not None and not codegen.llvm_is_valid_cpu(str(cpu), triple):
        any_cpu = tvm.target.Target({"kind": "llvm", "mtriple": triple})
        known = map(str, codegen.llvm_get_cpu_archlist(any_cpu))
        raise InvalidArgument(
            f"target {given!r}: LLVM does not know the CPU {str(cpu)!r} for {triple}{did_you_mean(str(cpu), known)}"
        )
    _check_options(target, given)
    return target


def _check_options(target: tvm.target.Target, given: TargetLike) -> None:
    """Raises InvalidArgument for what LLVM would ignore, and for a number of cores that cannot be."""
    added = [str(feature) for feature in target.attrs.get("mattr") or () if not str(feature).startswith("-")]
    if added:
        known = set(map(str, codegen.llvm_get_cpu_features(target)))
        for feature in added:
            if feature[:1] != "+" or feature[1:] not in known:
                raise InvalidArgument(
                    f"target {given!r}: LLVM does not know the feature {feature!r} for {triple_of(target)}; "
                    "write +NAME or -NAME, with LLVM's name"
                )
    cores = target.attrs.get("num-cores")
    if cores is not None and int(cores) < 1:
        raise InvalidArgument(f"target {given!r}: num-cores is {cores}; expected 1 or more")


def _made(given: str | Mapping[str, object]) -> tvm.target.Target:
    """The target of a board's name, or of what TVM takes. Raises InvalidArgument."""
    if isinstance(given, str) and given in BOARDS:
        return tvm.target.Target(BOARDS[given].as_json())
    try:
        return tvm.target.Target(given)
    except (ValueError, TypeError, tvm.error.InternalError) as error:
        if not isinstance(given, str) or given.lstrip().startswith("{"):
            raise InvalidArgument(f"target {given!r}: {' '.join(str(error).split())}") from None
    if " -" in given:
        example = old_target_as_json(given) or json.dumps(BOARDS["raspberry-pi-4"].as_json())
        raise InvalidArgument(f"target {given!r} has options, which TVM takes as JSON only; write {example}")
    near = closest(given)
    raise InvalidArgument(
        f"target {given!r} is not known; "
        + (f"did you mean {' or '.join(map(repr, near))}?" if near else f"{_LISTED}, and TVM's JSON is taken")
    )


def resolve_workers_target(given: TargetLike) -> tvm.target.Target:
    """Return the TVM target of a CPU or, by its name, of a GPU. Raises what `resolve_target` and `gpu_target` raise."""
    if isinstance(given, str) and given.startswith(PREFIX):
        return gpu_target(given)
    if isinstance(given, tvm.target.Target) and is_gpu(given) and given.host is not None:
        return given
    return resolve_target(given)


def host_of(target: tvm.target.Target) -> tvm.target.Target:
    """The CPU's part of a target."""
    return target.host if is_gpu(target) else target


def triple_of(target: tvm.target.Target) -> str:
    return str(host_of(target).attrs.get("mtriple") or codegen.llvm_get_system_triple())


def target_json(target: tvm.target.Target) -> Any:
    """The target as JSON-able data, for model.json and the manifest."""
    return json.loads(str(target))


def cpu_needs(target: tvm.target.Target) -> CpuNeeds:
    """The instruction sets that a CPU needs to run code for `target`."""
    return CpuNeeds.of(triple_of(target), map(str, codegen.llvm_get_cpu_features(host_of(target))))


def gpu_needs(target: tvm.target.Target) -> GpuNeeds | None:
    """The GPU that a library for `target` needs."""
    return GpuNeeds(str(target.attrs["arch"])) if is_gpu(target) else None


def runs_here(target: tvm.target.Target) -> bool:
    """Whether this machine can run code for `target`. Code for a GPU runs in workers only."""
    return not is_gpu(target) and cpu_needs(target).met()


def toolchain() -> dict[str, Any]:
    """JSON-able data on which a library compiled here depends, apart from the model."""
    return {"tvm": tvm.__version__, "target": target_json(host_target())}
