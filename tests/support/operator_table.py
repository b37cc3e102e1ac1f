"""Write docs/operators.md: the ONNX operators that can be imported, by ONNX's own tests.

`python -m tests.support.operator_table` runs all tests, which takes about 10 minutes, and writes the page.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import onnx

from tests.support.operator_cases import CRASH, DIFFERS, RIGHT, Case, Outcome, cases, outcome

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"

HEAD = """# Operators

This page lists for each ONNX operator how many of ONNX's own tests compute the right result after `zmq-offload
compile`, and how many are refused. Each test runs twice: with all inputs computed at run time, and with all inputs
but the first as constants. One of the two has to be right. A model with a refused operator does not compile. The
message names the operator, the node, and the attribute or input that cannot be used.

The importer also refuses a node with an attribute or an input that it does not read, and a result whose datatype or
shape differs from ONNX's. These operators of ONNX Runtime (`com.microsoft`) are imported: {contrib}.

A node is refused where ONNX and ONNX Runtime disagree (`Resize` with `align_corners` and a scale that does not give
whole sizes), and where TVM defines the operator differently (`RoiAlign` with `mode=max`, `LRN` with an even size).
`Shape` can be used inside a model. As an output of the model, as in ONNX's tests, it is refused.

`python -m tests.support.operator_table` writes this page (here with onnx {version}). A test compares it with the
importer.

| operator | right | refused | reason |
|---|---:|---:|---|
"""


def operator_of(case: Case) -> str | None:
    """The operator that a case tests; None for those whose operator was written out as others."""
    return case.model.graph.node[0].op_type if len(case.model.graph.node) == 1 else None


def reason(detail: str) -> str:
    """Why a case is refused, without the names of this one."""
    text = re.sub(r"^cannot import the operator \w+ \(.*?'\):? ", "", detail)
    text = re.sub(r"^\S+ is of ONNX", "ONNX", text)  # the file's name
    text = re.sub(r"^--input '[^']*': dimension \d is 0", "an input without elements", text)
    text = re.sub(r",? ?'[^']*',?| \('[^']*'\)", "", text).split("; ")[0]
    return " ".join(text.replace("|", "/").split())[:90] or "no reason"


def both(case: Case) -> list[Outcome]:
    return [outcome(case, constant) for constant in ([False, True] if len(case.inputs) > 1 else [False])]


def table(results: Iterable[tuple[str, list[Outcome]]]) -> str:
    """The rows of the table for the outcomes of each case, by operator."""
    right: dict[str, int] = defaultdict(int)
    refused: dict[str, list[str]] = defaultdict(list)
    for operator, found in results:
        for one in found:
            if one.kind in (CRASH, DIFFERS):
                raise SystemExit(f"{operator}: {one.kind}: {one.detail}")
        if any(one.kind == RIGHT for one in found):
            right[operator] += 1
        else:
            refused[operator].append(reason(found[-1].detail))
    rows = []
    for name in sorted({*right, *refused}):
        why = ", ".join(sorted(set(refused[name]))[:2])
        rows.append(f"| {name} | {right[name]} | {len(refused[name])} | {why} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    from zmq_offload.compile.operators.schemas import CONTRIB

    results = ((name, both(case)) for case in cases() if (name := operator_of(case)) is not None)
    contrib = ", ".join(sorted(f"`{name}`" for _, name in CONTRIB))
    PAGE.write_text(HEAD.format(contrib=contrib, version=onnx.__version__) + table(results))


if __name__ == "__main__":
    main()
