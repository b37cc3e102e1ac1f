"""TVM targets: what the user writes, checked; the host's own CPU by default."""

from __future__ import annotations

import json
from typing import Any

import tvm
from tvm.target import codegen

from zmq_offload.artifacts.cpu import CpuNeeds
from zmq_offload.common.cores import usable_cores
from zmq_offload.errors import InvalidArgument


def host_target() -> tvm.target.Target:
    """This machine's CPU under the name that LLVM has for it (it refuses "native"), with the cores we may use."""
    cores = usable_cores()
    return tvm.target.Target({"kind": "llvm", "mcpu": str(codegen.llvm_get_system_cpu()), "num-cores": cores})


def resolve_target(given: str | dict[str, Any] | tvm.target.Target | None) -> tvm.target.Target:
    """The target for what the user gave: None (the host), a TVM target, its JSON, or a name such as "llvm".

    Raises InvalidArgument for what TVM does not know, for a target that is not a CPU, and for a CPU that its LLVM does
    not know (which would quietly become a generic one).
    """
    if given is None:
        return host_target()
    try:
        target = given if isinstance(given, tvm.target.Target) else tvm.target.Target(given)
    except (ValueError, TypeError, tvm.error.InternalError) as error:
        raise InvalidArgument(f"target {given!r}: {' '.join(str(error).split())}") from None
    if target.kind.name != "llvm":
        raise InvalidArgument(f"target {given!r}: only CPUs are supported (kind llvm, not {target.kind.name})")
    cpu, triple = target.attrs.get("mcpu"), target.attrs.get("mtriple") or codegen.llvm_get_system_triple()
    if cpu is not None and not codegen.llvm_is_valid_cpu(str(cpu), str(triple)):
        raise InvalidArgument(f"target {given!r}: LLVM knows no CPU {str(cpu)!r} for it")
    return target


def target_json(target: tvm.target.Target) -> Any:
    """A target as JSON-able data, for model.json and the manifest."""
    return json.loads(str(target))


def cpu_needs(target: tvm.target.Target) -> CpuNeeds:
    """What a CPU must have to run code for `target`."""
    triple = str(target.attrs.get("mtriple") or codegen.llvm_get_system_triple())
    return CpuNeeds.of(triple, map(str, codegen.llvm_get_cpu_features(target)))


def runs_here(target: tvm.target.Target) -> bool:
    """Whether this machine can run code for a target, and so measure it."""
    return cpu_needs(target).met()


def toolchain() -> dict[str, Any]:
    """What a library that is compiled here for here depends on, besides the model: as JSON-able data."""
    return {"tvm": tvm.__version__, "target": target_json(host_target())}
