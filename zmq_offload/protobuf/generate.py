"""Writes `definitions.binpb` from the files in `definitions/`: `python -m zmq_offload.protobuf.generate`.

It needs grpcio-tools, which has the compiler of protocol buffers; the gateway itself does not.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def compile_definitions(destination: Path) -> None:
    """Compile all definitions to one FileDescriptorSet, in an order in which each file follows those it imports."""
    from grpc_tools import protoc

    folder = HERE / "definitions"
    standard = Path(protoc.__file__).parent / "_proto"  # google/protobuf/any.proto and its like
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.proto"))
    paths = [f"--proto_path={folder}", f"--proto_path={standard}"]
    if protoc.main(["protoc", *paths, "--include_imports", f"--descriptor_set_out={destination}", *files]):
        raise SystemExit(1)


def main() -> None:
    """Write the checked-in file, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=HERE) as scratch:
        compiled = Path(scratch) / "definitions.binpb"
        compile_definitions(compiled)
        compiled.replace(HERE / "definitions.binpb")


if __name__ == "__main__":
    main()
