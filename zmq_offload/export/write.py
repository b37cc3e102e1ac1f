"""Writes a model repository of ours as one of Triton's: `OUT/<model>/{config.pbtxt, <version>/...}`.

A version's folder has `subgraph.so` and `model.json` as they are, so that they are checked where they are loaded, and
`model.py`. A model is complete or absent, as in our repository.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from zmq_offload.artifacts.repository import DESCRIPTION, LIBRARY, ModelVersion, Repository
from zmq_offload.common.scratch import PREFIX, folders_made, put_in_place, scratch_folder
from zmq_offload.common.suggest import did_you_mean
from zmq_offload.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from zmq_offload.export.triton import CODE, CONFIG, MODEL, Running, batching_in_triton, config_of, same_signature


class Exported(NamedTuple):
    """A model that was written.

    Parameters
    ----------
    folder : pathlib.Path
        Its folder.
    versions : tuple of int
        The versions that were written.
    batched : bool
        Whether Triton runs requests together.
    left_out : tuple of int
        Versions that were left out, since their signature is not that of the highest one.
    """

    folder: Path
    versions: tuple[int, ...]
    batched: bool
    left_out: tuple[int, ...]


def export_to_triton(
    repository: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    models: Sequence[str] = (),
    running: Running | None = None,
    force: bool = False,
) -> list[Exported]:
    """Write models of a repository into a model repository of Triton's.

    Parameters
    ----------
    repository : path
        The model repository that `zmq_offload.compile` wrote.
    output : path
        Triton's model repository. It is made if it does not exist.
    models : sequence of str, optional
        The models to write. Default: all.
    running : Running, optional
        The number of instances of each model, and their threads.
    force : bool, optional
        Replace models that exist in `output`.

    Returns
    -------
    list of Exported
        What was written, by model.

    Raises
    ------
    NotFound
        If the repository has no model, or not one of `models`.
    AlreadyExists
        If a model exists in `output`, without `force`.
    InvalidArgument
        If Triton cannot serve a model; the message names the tensor. If `output` is `repository`, or in it. If
        `running` has other numbers than those of 1 and more.
    FailedPrecondition
        If a version is damaged, or `output` cannot be written.
    """
    source, place = Repository(repository), Path(output)
    root = source.root.resolve()
    if root in (place.resolve(), *place.resolve().parents):
        where = "is" if place.resolve() == root else "is in"
        raise InvalidArgument(f"{place} {where} the repository that is read; write to another folder")
    chosen = [_read(source, name) for name in _chosen(source, models)]
    configs = [config_of(versions, running or Running()) for versions, _ in chosen]
    for versions, _ in chosen:
        folder = place / versions[-1].name
        if os.path.lexists(folder) and not force:
            raise AlreadyExists(f"{folder} exists; write to another folder, or replace it (--force)")
    return [
        _write(source, place / versions[-1].name, versions, config, left_out)
        for (versions, left_out), config in zip(chosen, configs, strict=True)
    ]


def _chosen(source: Repository, models: Sequence[str]) -> list[str]:
    there = [name for name in source.models() if source.versions(name)]
    if not there:
        raise NotFound(f"{source.root} has no model; give the repository that zmq-offload compile wrote")
    for name in models:
        if name not in there:
            raise NotFound(f"{source.root} has no model {name!r}; it has {', '.join(there)}{did_you_mean(name, there)}")
    return list(dict.fromkeys(models)) or there


def _read(source: Repository, name: str) -> tuple[list[ModelVersion], tuple[int, ...]]:
    """The versions that can share a configuration, in ascending order, and the numbers of the others."""
    found = [source.read(name, number) for number in source.versions(name)]
    alike = [model for model in found if same_signature(model, found[-1])]
    return alike, tuple(model.version for model in found if model not in alike)


def _write(
    source: Repository, place: Path, versions: Sequence[ModelVersion], config: str, left_out: tuple[int, ...]
) -> Exported:
    try:
        with folders_made(place.parent), scratch_folder(place.parent, PREFIX) as scratch:
            draft = scratch / "new"
            draft.mkdir()
            (draft / CONFIG).write_text(config, encoding="utf-8")
            for model in versions:
                folder = draft / str(model.version)
                folder.mkdir()
                (folder / CODE).write_text(MODEL)
                for name in (LIBRARY, DESCRIPTION):
                    shutil.copyfile(source.path(model.name, model.version) / name, folder / name)
            put_in_place(draft, place)
    except OSError as error:
        raise FailedPrecondition(f"{place} cannot be written: {error.strerror or error}") from None
    numbers = tuple(model.version for model in versions)
    return Exported(place, numbers, batching_in_triton(versions) is not None, left_out)
