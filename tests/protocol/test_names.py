"""Names and versions of models."""

from __future__ import annotations

from typing import Any

import pytest

from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.names import check_model_name, check_version


@pytest.mark.parametrize("name", ["m", "text-regions.v2", "_0", "m" * 128])
def test_a_name_is_letters_digits_and_a_few_signs(name: str) -> None:
    assert check_model_name(name) == name


@pytest.mark.parametrize("name", ["", "../m", ".m", "-m", "a b", "é", "m" * 129, 3])
def test_other_names_are_refused(name: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^part name .* is not valid; use 1 to 128"):
        check_model_name(name, "part")


def test_a_version_is_a_whole_number_from_1() -> None:
    assert check_version(1) == 1
    for version in (0, 2**31, True, "1", 1.0, None):
        with pytest.raises(InvalidArgument, match="is not a whole number from 1 to"):
            check_version(version)
