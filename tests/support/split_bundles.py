"""A small network with several splits, compiled by TVM alone: its device library and its workers' library.

x -A-> wide -B-> narrow -C-> y, matrix products all. The device library has an entry for each of the cuts `x`, `wide`
and `narrow`, and `whole`, which runs everything. The workers' library has one entry for each cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax

from zmq_offload.artifacts.manifest import LIBRARY as DEVICE_LIBRARY
from zmq_offload.artifacts.manifest import BundleSplit, Manifest, OffloadedRegion, VersionPolicy
from zmq_offload.artifacts.repository import LIBRARY, ModelVersion, Repository, checksum
from zmq_offload.compile.target import cpu_needs, host_target, target_json
from zmq_offload.protocol.tensors import TensorSpec

Array = np.ndarray[Any, Any]

CUTS = ("x", "wide", "narrow")


@dataclass(frozen=True)
class SplitNet:
    """The network for tensors of these widths."""

    widths: tuple[int, int, int, int] = (16, 64, 4, 8)
    seed: int = 5

    @property
    def weights(self) -> list[Array]:
        draw = np.random.default_rng(self.seed)
        return [
            draw.standard_normal((rows, columns), np.float32) / np.float32(rows**0.5)
            for rows, columns in zip(self.widths, self.widths[1:], strict=False)
        ]

    def expected(self, x: Array) -> Array:
        for weights in self.weights:
            x = x @ weights
        return x

    def specs(self) -> list[TensorSpec]:
        """x, wide, narrow, y."""
        names = (*CUTS, "y")
        return [TensorSpec(n, "FP32", (1, width)) for n, width in zip(names, self.widths, strict=True)]

    def model(self, cut: str) -> str:
        return f"net.{cut}"


def library(path: Path, functions: dict[str, tuple[int, int, str | None]], net: SplitNet) -> None:
    """A library whose functions compute from the tensor of one number to that of another, and then call a symbol for
    the rest, if they have one."""
    builder = relax.BlockBuilder()
    weights = [relax.const(w) for w in net.weights]
    for name, (first, last, symbol) in functions.items():
        value = relax.Var("v", relax.TensorType((1, net.widths[first]), "float32"))
        with builder.function(name, [value]):
            result: Any = value
            for number in range(first, last):
                result = builder.emit(relax.op.matmul(result, weights[number]))
            if symbol is not None:
                out = relax.TensorType((1, net.widths[-1]), "float32")
                result = builder.emit(relax.op.call_dps_packed(symbol, (result,), out))
            builder.emit_func_output(result)
    tvm.compile(builder.get(), host_target()).export_library(str(path))


def write_models(repository: Repository, net: SplitNet, version: int = 1, cuts: Sequence[str] = CUTS) -> None:
    """A model for each cut, each with a link to one library."""
    first: Path | None = None
    specs = net.specs()
    for number, cut in enumerate(CUTS):
        if cut not in cuts:
            continue

        def build(folder: Path, number: int = number, cut: str = cut, source: Path | None = first) -> ModelVersion:
            if source is None:
                library(folder / LIBRARY, {f"from_{c}": (n, 3, None) for n, c in enumerate(CUTS)}, net)
            else:
                (folder / LIBRARY).hardlink_to(source)
            return ModelVersion(
                net.model(cut),
                version,
                (specs[number],),
                (specs[-1],),
                target_json(host_target()),
                tvm.__version__,
                checksum="",
                cpu=cpu_needs(host_target()),
                entry=f"from_{cut}",
            )

        repository.write(net.model(cut), version, build)
        first = first or repository.path(net.model(cut), version) / LIBRARY


def write_bundle(folder: Path, net: SplitNet, *, local: bool = True, policy: VersionPolicy = "latest") -> Path:
    """An adaptive bundle with a split at each cut. Its splits are called like the cuts."""
    folder.mkdir()
    specs = net.specs()
    symbols = {cut: f"split_net_{net.seed}_{cut}" for cut in CUTS}
    entries: dict[str, tuple[int, int, str | None]] = {f"to_{c}": (0, n, symbols[c]) for n, c in enumerate(CUTS)}
    library(folder / DEVICE_LIBRARY, entries | ({"whole": (0, 3, None)} if local else {}), net)
    splits = tuple(
        BundleSplit(
            cut,
            (cut,),
            (),
            "float32",
            f"to_{cut}",
            OffloadedRegion(symbols[cut], net.model(cut), policy, (spec,), (specs[-1],)),
        )
        for cut, spec in zip(CUTS, specs, strict=False)
    )
    target = host_target()
    Manifest(
        (specs[0],),
        (specs[-1],),
        tuple(split.region for split in splits),
        target_json(target),
        cpu_needs(target),
        tvm.__version__,
        checksum(folder / DEVICE_LIBRARY),
        splits=splits,
        local="whole" if local else "",
    ).write(folder)
    return folder
