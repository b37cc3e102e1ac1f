"""The options that compile_model and compile_module share are said once, and reach both."""

from __future__ import annotations

import doctest
import inspect
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest

import zmq_offload.compile
from zmq_offload.compile import BuildOptions, accuracy, compile_model, compile_module, options, uncut
from zmq_offload.compile.options import BuildKeywords, merged
from zmq_offload.errors import InvalidArgument


def test_every_option_is_a_keyword_of_the_same_type() -> None:
    assert get_type_hints(BuildKeywords) == get_type_hints(BuildOptions)


@pytest.mark.parametrize("function", [compile_model, compile_module])
def test_help_and_notebooks_list_the_options_as_keywords(function: object) -> None:
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    assert {field.name: field.default for field in fields(BuildOptions)}.items() <= {
        name: parameter.default for name, parameter in parameters.items()
    }.items()
    assert "keywords" not in parameters


def test_a_keyword_overrides_an_option() -> None:
    both = merged(BuildOptions(version=3, force=True), {"version": 4})
    assert (both.version, both.force) == (4, True)


def test_an_unknown_keyword_is_a_type_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="forse"):
        compile_model(tmp_path / "m.onnx", cut="h", name="m", forse=True)  # type: ignore[call-arg]


def test_options_reach_the_build(mlp: Path, tmp_path: Path) -> None:
    given = BuildOptions(output=tmp_path, only_subgraph=True, with_fallback=True)
    with pytest.raises(InvalidArgument, match="--with-fallback changes the device bundle, which --only-subgraph keeps"):
        compile_model(mlp, inputs={"x": (2, 8)}, cut="h2", name="mlp", options=given)


def test_every_public_name_says_how_it_is_used() -> None:
    for name in zmq_offload.compile.__all__:
        value = getattr(zmq_offload.compile, name)
        text = inspect.getdoc(value) or ""
        assert "Parameters\n----------" in text or "Attributes\n----------" in text, name
        assert "Examples\n--------" in text, name


@pytest.mark.parametrize("module", [accuracy, options, uncut])
def test_examples_print_what_they_say(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0
