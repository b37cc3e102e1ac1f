"""Read a file of torch.export.save: the program, and the names of its inputs and outputs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from zmq_offload.errors import InvalidArgument, one_line

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""The variable of the environment by which torch.load refuses pickled objects whatever its caller says."""

OBJECTS = ("custom_obj_", "opaque_obj_")
"""Beginnings of the names of pickled objects in an archive."""


def read_program(file: Path) -> Any:
    """Read an exported program. Raises InvalidArgument, with the file's name, if it cannot be read.

    Files that hold pickled Python objects are refused: a pickle can run any program.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            texts = [archive.read(n) for n in names if n.endswith(".json") and "config" not in n.rpartition("/")[2]]
        pickled = next((n for n in names if n.rpartition("/")[2].startswith(OBJECTS)), None)
        if pickled is not None:
            raise InvalidArgument(
                f"{file} holds a pickled object ({pickled}), which is not opened, since a pickle can run any program; "
                "export a module whose constants are tensors"
            )
        containers = {name for text in texts for name in _containers(json.loads(text))}
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, RecursionError) as error:
        if isinstance(error, InvalidArgument):
            raise
        raise InvalidArgument(f"{file} is damaged: {one_line(error)}; save it again with torch.export.save") from None
    for name in containers:
        _know_container(name)
    with _logged() as said, _no_pickles():
        try:
            return torch.export.load(file)
        except Exception as error:
            if "weights_only" in str(error):
                raise InvalidArgument(
                    f"{file} holds a pickled object, which is not opened, since a pickle can run any program; export "
                    "a module whose inputs and constants are tensors"
                ) from None
            why = said[-1] if said else one_line(error)
            raise InvalidArgument(
                f"{file} cannot be read by PyTorch {torch.__version__}: {why}; save it again with torch.export.save of "
                "this version"
            ) from None


def output_names(program: Any) -> list[str]:
    """Names for the outputs: the keys of a dictionary or the fields of a class, or "output", "output_0", ..."""
    return [_joined(path) for path in _paths(program.call_spec.out_spec)]


def _paths(spec: Any) -> Iterator[tuple[str, ...]]:
    if spec.is_leaf():
        yield ()
        return
    children = spec.children()
    keys = spec.context if isinstance(spec.context, list | tuple) else range(len(children))
    named = len(keys) == len(children) and all(isinstance(key, str) for key in keys)
    for at, child in enumerate(children):
        for rest in _paths(child):
            yield (str(keys[at]) if named else f"{at}", *rest)


def _joined(path: tuple[str, ...]) -> str:
    if not path:
        return "output"
    return f"output_{'_'.join(path)}" if path[0].isdigit() else ".".join(path)


def _containers(value: Any) -> Iterator[str]:
    """The classes of inputs and outputs that a file names, such as those of transformers."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("in_spec", "out_spec") and isinstance(inner, str):
                yield from _types(json.loads(inner))
            else:
                yield from _containers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _containers(inner)


def _types(spec: Any) -> Iterator[str]:
    if isinstance(spec, list):
        for inner in spec:
            yield from _types(inner)
    elif isinstance(spec, dict):
        if isinstance(spec.get("type"), str):
            yield spec["type"]
        yield from _types(spec.get("children_spec"))


def _know_container(name: str) -> None:
    """Let torch read a file that names a class whose package is not imported here. Only the keys matter to us."""
    if name in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE:
        return
    stand_in = type(name.rpartition(".")[2], (dict,), {})

    def parts(value: Any) -> tuple[list[Any], list[Any]]:
        return list(value.values()), list(value)

    def whole(values: Any, keys: Any) -> Any:
        return stand_in(zip(keys, values, strict=True))

    pytree.register_pytree_node(stand_in, parts, whole, serialized_type_name=name)


@contextlib.contextmanager
def _no_pickles() -> Iterator[None]:
    """Torch would unpickle the sample inputs, which can run any program. This makes it read tensors only."""
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if before is None:
            del os.environ[FORCE]
        else:
            os.environ[FORCE] = before


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """Keep the last line of each of torch's messages, in which it hides why a file cannot be read."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.extend(record.getMessage().strip().splitlines()[-1:])

    logger, handler = logging.getLogger("torch.export"), Keep()
    before = logger.handlers[:], logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield said
    finally:
        logger.handlers, logger.propagate = before
