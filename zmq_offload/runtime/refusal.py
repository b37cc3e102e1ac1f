"""Arguments that the virtual machine refuses, as errors of ours.

A signature says which extents are symbolic, but not which of them are the same. That is compared where a library's
`main` begins, by TVM, whose message names the parameter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from zmq_offload.errors import InvalidArgument

_PARAMETER = re.compile(r"ErrorContext\(fn=main, loc=param\[(\d+)\], param=([^,]+),")
_TWO = re.compile(r"\((-?\d+) vs\. (-?\d+)\)")
_AXIS = re.compile(r"shape\[(\d+)\] mismatch to (a previous populated value|specified constant)")
_KIND = re.compile(r"expect Tensor with (dtype|ndim) (\S+) but get (\S+)")
_COMPUTED = re.compile(r"ErrorContext\(match_cast,")


def refusal(error: Exception, names: Sequence[str] = ()) -> InvalidArgument | None:
    """The error of a caller whose arguments do not fit `main`; None for an error of another kind.

    `names` are the names of the inputs, where they are known.
    """
    text = " ".join(str(error).split())
    parameter, axis, two = _PARAMETER.search(text), _AXIS.search(text), _TWO.search(text)
    if parameter is None:
        if _COMPUTED.search(text) and axis is not None and two is not None:
            return InvalidArgument(
                f"dimension {axis[1]} of a tensor would be {two[1]} where the model needs {two[2]}; give inputs whose "
                "extents are multiples of those that it was compiled for"
            )
        return None
    number = int(parameter[1])
    name = names[number] if number < len(names) else parameter[2]
    if axis is not None and two is not None:
        where = f"dimension {axis[1]} of input {name!r} is {two[1]}"
        if axis[2] == "specified constant":
            return InvalidArgument(f"{where}; it takes {two[2]}")
        return InvalidArgument(f"{where}, but the same extent is {two[2]} elsewhere in the inputs; give both the same")
    kind = _KIND.search(text)
    if kind is None:
        return None
    if kind[1] == "ndim":
        return InvalidArgument(f"input {name!r} has {kind[3]} dimensions; it takes {kind[2]}")
    return InvalidArgument(f"input {name!r} is of {kind[3]}; it takes {kind[2]}")
