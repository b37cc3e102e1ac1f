"""Message classes for the definitions of this project, apart from those of other packages. Pure.

Clients' packages such as tritonclient register `inference.ModelInferRequest` and its like in protobuf's default pool,
which takes each name once. The classes here come from a pool of their own, so both can live in one process.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from zmq_offload.errors import Internal, InvalidArgument
from zmq_offload.protocol.payload import Buffer

LARGEST = 1 << 20
"""Bytes of a request that has no tensors. An object of protobuf can take 20 times as many."""


class Malformed(Internal):
    """The bytes are no message. Servers of gRPC answer with INTERNAL."""


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


def parse_message(name: str, data: Buffer) -> Any:
    """A message, by its full name. Raises Malformed for bytes that protobuf refuses."""
    try:
        return message_class(name).FromString(bytes(data))
    except DecodeError:
        raise Malformed(f"the bytes are no {name}; send what protobuf serializes") from None


def parse_small_message(name: str, data: Buffer) -> Any:
    """A message without tensors. Raises InvalidArgument for one that is too large, too."""
    if len(data) > LARGEST:
        raise InvalidArgument(f"the {name} has {len(data)} bytes; at most {LARGEST} are taken")
    return parse_message(name, data)
