"""Cut points by the paths of modules, as a PyTorch user thinks: `backbone.layer4` is the tensor that leaves it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from zmq_offload.common.suggest import nearest
from zmq_offload.errors import InvalidArgument


class Step(NamedTuple):
    """One operator: the tensors that it makes and uses, and the path of the module that called it."""

    makes: Sequence[str]
    uses: Sequence[str]
    path: str


def module_outputs(steps: Iterable[Step], outputs: Collection[str]) -> dict[str, tuple[str, ...]]:
    """For the path of each module the tensors that leave it, in order: others use them, or the model returns them."""
    steps = list(steps)
    maker: dict[str, str] = {}
    leaving: dict[str, dict[str, None]] = {}
    for step in steps:
        for path in _within(step.path):
            leaving.setdefault(path, {})
        maker.update(dict.fromkeys(step.makes, step.path))
    users: dict[str, list[str]] = {}
    for step in steps:
        for name in step.uses:
            users.setdefault(name, []).append(step.path)
    for name, path in maker.items():
        around = [set(_within(user)) for user in users.get(name, ())]
        for module in _within(path):
            if name in outputs or any(module not in other for other in around):
                leaving[module][name] = None
    return {path: tuple(names) for path, names in leaving.items()}


def _within(path: str) -> list[str]:
    """A path and the paths around it, the outermost first."""
    parts = path.split(".") if path else []
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def outermost(modules: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """For each tensor that is a module's only output, the path of the outermost such module."""
    found: dict[str, str] = {}
    for path in sorted(modules, key=lambda path: path.count(".")):
        if len(modules[path]) == 1:
            found.setdefault(modules[path][0], path)
    return found


def located(names: Iterable[str], tensors: Collection[str], modules: Mapping[str, Sequence[str]]) -> list[str]:
    """The names with paths of modules replaced by the tensors that leave them. Names of tensors stay.

    Raises InvalidArgument for a module from which no tensor or more than one leaves, and for a name that is neither a
    tensor nor a module of the model, with the nearest ones.
    """
    return [name if name in tensors or not modules else _located(name, tensors, modules) for name in names]


def _located(name: str, tensors: Collection[str], modules: Mapping[str, Sequence[str]]) -> str:
    if name not in modules:
        # A path from further out or further in: the exporters differ in where they begin.
        ends = [m for m in modules if name and (f".{name}".endswith(f".{m}") or f".{m}".endswith(f".{name}"))]
        known = [max(ends, key=len)] if ends else [*modules, *tensors]
        near = f"; did you mean {known[0]!r}?" if ends else nearest(name, known)
        raise InvalidArgument(f"--cut, --until: the model has no tensor or module {name!r}{near}")
    leaving = modules[name]
    if len(leaving) == 1:
        return leaving[0]
    if not leaving:
        raise InvalidArgument(f"--cut, --until: no tensor leaves the module {name!r}; name another one")
    shown = ", ".join(map(repr, leaving[:6])) + (", ..." if len(leaving) > 6 else "")
    raise InvalidArgument(f"--cut, --until: several tensors leave the module {name!r}; name those to cut at: {shown}")
