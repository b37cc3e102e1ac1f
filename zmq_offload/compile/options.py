"""Options that `compile_model` and `compile_module` share: how to build, and where to write."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias, TypedDict, TypeVar

from zmq_offload.artifacts.manifest import VersionPolicy
from zmq_offload.artifacts.repository import Batching
from zmq_offload.compile.cuda.precision import Precision
from zmq_offload.compile.target import TargetLike
from zmq_offload.console.progress import Progress

PathLike: TypeAlias = str | os.PathLike[str]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class BuildOptions:
    """How a partitioned model is compiled, and where the results are written.

    `compile_model` and `compile_module` take each field as a keyword argument, too; a keyword overrides the field.

    Parameters
    ----------
    version : int, optional
        Version number of the subgraphs, from 1. Default: 1; with `only_subgraph` the next free number.
    policy : int or str
        Version that the device asks for: a number, ``"latest"``, or ``"label:NAME"`` for the one that a label stands
        for at the workers (docs/operations.md).
    target : str, dict or tvm.target.Target, optional
        TVM target of the workers: a name such as ``"llvm"``, JSON, or an object, or the name of a GPU, such as
        ``"cuda-sm90"`` or ``"cuda-native"``. Default: this machine's CPU.
    device_target : str, dict or tvm.target.Target, optional
        TVM target of the device. Default: this machine's CPU.
    repository : path, optional
        Model repository that gets ``<name>/<version>`` for each subgraph. Default: ``<output>/repository``.
    output : path
        Folder that gets the device bundle, as ``<output>/device``.
    force : bool
        Replace a version and a device bundle that exist.
    only_subgraph : bool
        Write new versions of the subgraphs only, and keep the device bundle.
    with_fallback : bool
        Put a fallback of each subgraph into the device bundle, which then holds all weights and is not sealed.
    new_signature : bool
        Allow inputs or outputs that differ from those of the highest version in the repository.
    batching : Batching, optional
        How workers batch requests. Default: one request at a time.
    tune : int
        Candidate schedules to compile and measure on this machine, 0 to 1,000,000. Ctrl-C stops tuning; the build goes
        on with the best schedules so far.
    tuning_db : path, optional
        Folder with tuning results. It is used with and without `tune`. Default with `tune`: ``<output>/tuning``.
    precision : {"float32", "float16"}
        Datatype of the operands of convolutions and matrix products on a GPU. Sums and all else are in float32, also
        inputs and outputs.
    progress : Progress, optional
        Display for the steps. Default: none.

    Examples
    --------
    >>> from zmq_offload.compile import BuildOptions, compile_model
    >>> options = BuildOptions(output="dist", target={"kind": "llvm", "mcpu": "znver4"}, with_fallback=True)
    >>> compile_model("detection.onnx", cut="features", name="detection", options=options)  # doctest: +SKIP
    """

    version: int | None = None
    policy: VersionPolicy = "latest"
    target: TargetLike = None
    device_target: TargetLike = None
    repository: PathLike | None = None
    output: PathLike = "dist"
    force: bool = False
    only_subgraph: bool = False
    with_fallback: bool = False
    new_signature: bool = False
    batching: Batching | None = None
    tune: int = 0
    tuning_db: PathLike | None = None
    precision: Precision = "float32"
    progress: Progress | None = None


class BuildKeywords(TypedDict, total=False):
    """The fields of `BuildOptions` as keyword arguments, for type checkers and editors."""

    version: int | None
    policy: VersionPolicy
    target: TargetLike
    device_target: TargetLike
    repository: PathLike | None
    output: PathLike
    force: bool
    only_subgraph: bool
    with_fallback: bool
    new_signature: bool
    batching: Batching | None
    tune: int
    tuning_db: PathLike | None
    precision: Precision
    progress: Progress | None


def merged(options: BuildOptions | None, keywords: BuildKeywords) -> BuildOptions:
    """`options` with `keywords` in place of its fields. Raises TypeError for an unknown keyword."""
    return replace(BuildOptions() if options is None else options, **keywords)


def with_build_keywords(function: Function) -> Function:
    """List the fields of BuildOptions in the signature that `help()` and notebooks show in place of `**keywords`."""
    own = inspect.signature(function)
    parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    parameters += [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for f in fields(BuildOptions)
    ]
    function.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return function
