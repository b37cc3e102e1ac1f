"""Which GPU can run a library."""

from __future__ import annotations

import pytest

from zmq_offload.artifacts import jsonfile
from zmq_offload.artifacts.gpu import GpuNeeds
from zmq_offload.errors import FailedPrecondition, InvalidArgument


@pytest.mark.parametrize(
    ("built_for", "has"), [("sm_80", "8.0"), ("sm_80", "8.9"), ("sm_90", "9.0"), ("sm_100", "10.3")]
)
def test_machine_code_runs_on_the_same_major_number_and_later_minor_ones(built_for: str, has: str) -> None:
    GpuNeeds(built_for).check("it", "cuda:0", has)


@pytest.mark.parametrize(("built_for", "has"), [("sm_80", "9.0"), ("sm_89", "8.6"), ("sm_90", "8.9"), ("sm_90", "?")])
def test_on_another_gpu_it_is_refused(built_for: str, has: str) -> None:
    with pytest.raises(FailedPrecondition, match=r"^it was built for a GPU of compute capability \d\.\d, cuda:0 has "):
        GpuNeeds(built_for).check("it", "cuda:0", has)


def test_a_name_that_is_not_an_architecture_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        jsonfile.convert({"architecture": "ampere"}, GpuNeeds)
