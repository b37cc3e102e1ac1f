"""Message classes for the definitions of this project, apart from those of other packages. Pure.

Clients' packages such as tritonclient register `inference.ModelInferRequest` and its like in protobuf's default pool,
which takes each name once. The classes here come from a pool of their own, so both can live in one process.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


@cache
def definitions() -> descriptor_pb2.FileDescriptorSet:
    """All definitions, each file after those that it imports."""
    return descriptor_pb2.FileDescriptorSet.FromString(files(__package__).joinpath("definitions.binpb").read_bytes())


@cache
def pool() -> descriptor_pool.DescriptorPool:
    """A pool that has the definitions, and nothing else."""
    found = descriptor_pool.DescriptorPool()
    for file in definitions().file:
        found.AddSerializedFile(file.SerializeToString())
    return found


@cache
def message_class(name: str) -> Any:
    """The class of a message, by its full name, such as "inference.ModelInferRequest"."""
    return message_factory.GetMessageClass(pool().FindMessageTypeByName(name))
