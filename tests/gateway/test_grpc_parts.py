"""The pure parts of gRPC: heads, messages, compression, trailers."""

from __future__ import annotations

import gzip
import math
import random
import zlib

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmq_offload.errors import Internal, InvalidArgument, NotFound, OffloadError, ResourceExhausted, Unimplemented
from zmq_offload.gateway.grpc.codings import Decoding, Encoding
from zmq_offload.gateway.grpc.heads import CallHead, call_head
from zmq_offload.gateway.grpc.messages import Assembler, prefixed
from zmq_offload.gateway.grpc.responses import HEADS, SUCCESS, failure, no_call
from zmq_offload.gateway.http2.headers import RequestHead


def head(*fields: tuple[str, str], method: str = "POST", size: int = 100, kind: str = "application/grpc") -> CallHead:
    fields = (("content-type", kind), *fields)
    return call_head(RequestHead(method, "/s/m", "host", fields, size, None), 1000)


def test_a_plain_head():
    found = head(("te", "trailers"), ("key", "a"), ("key", "b"))
    assert found == CallHead("/s/m", {"content-type": "application/grpc", "te": "trailers", "key": "a,b"}, size=100)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0n", 0.0), ("5S", 5.0), ("99999999m", 99999.999), ("2H", 7200), ("3M", 180), ("7u", 7e-6)],
)
def test_a_timeout_is_in_seconds(text, seconds):
    assert head(("grpc-timeout", text)).timeout == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "S", "-1S", "123456789S", "1.5S", "5s", " 5S", "٣S"])
def test_what_is_no_timeout_is_refused(text):
    assert isinstance(head(("grpc-timeout", text)).error, InvalidArgument)


@pytest.mark.parametrize("kind", ["application/grpc", "application/grpc+proto", "application/GRPC;charset=x"])
def test_content_types_of_grpc(kind):
    assert head(kind=kind).status == 200


@pytest.mark.parametrize("kind", ["", "application/json", "application/grpc-web", "application/grpc+json"])
def test_other_content_types_are_no_calls(kind):
    assert head(kind=kind).status == 415
    assert call_head(RequestHead("POST", "/", "", (), 0, None), 1000).status == 415
    assert head(method="GET", kind=kind).status == 405


def test_a_head_that_is_too_large_is_refused():
    assert isinstance(head(size=1001).error, ResourceExhausted) and head(size=1000).error is None


def test_how_messages_are_compressed():
    assert isinstance(head(("grpc-encoding", "br")).error, Unimplemented)
    assert head(("grpc-encoding", "gzip")).coding == "gzip"
    assert head(("grpc-encoding", "gzip")).reply_coding == "identity"
    assert head(("grpc-encoding", "gzip"), ("grpc-accept-encoding", "identity, gzip")).reply_coding == "gzip"
    assert head(("grpc-encoding", "gzip"), ("grpc-accept-encoding", "deflate")).reply_coding == "identity"
    assert head(("grpc-accept-encoding", "gzip,deflate")).reply_coding == "identity"


def compress(coding, parts):
    encoding = Encoding(coding, parts)
    while not encoding.step():
        pass
    return encoding.parts


def decompress(coding, data, largest):
    decoding = Decoding(coding, data, largest)
    while not decoding.step():
        pass
    return decoding.message


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@settings(max_examples=40)
@given(parts=st.lists(st.binary(max_size=100), max_size=3))
def test_compression_is_undone(coding, parts):
    compressed = b"".join(compress(coding, parts))
    assert decompress(coding, compressed, 300) == b"".join(parts)
    other = gzip.compress(b"x") if coding == "gzip" else zlib.compress(b"x")
    assert decompress(coding, memoryview(other), 1) == b"x"


@pytest.mark.parametrize(
    ("coding", "data", "error"),
    [
        ("identity", b"x", Internal),
        ("gzip", b"x", InvalidArgument),
        ("gzip", zlib.compress(b"x"), InvalidArgument),
        ("gzip", gzip.compress(b"x", mtime=0)[:-1], InvalidArgument),
        ("gzip", gzip.compress(b"x", mtime=0) + b"y", InvalidArgument),
        ("gzip", b"", InvalidArgument),
        ("deflate", zlib.compress(bytes(1001)), ResourceExhausted),
        ("gzip", gzip.compress(bytes(10_000_000), mtime=0), ResourceExhausted),
    ],
)
def test_what_cannot_be_decompressed_is_refused(coding, data, error):
    with pytest.raises(error):
        decompress(coding, data, 1000)


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 256 * 1024 + 1, 1_000_000])
def test_steps_of_compression_are_short(size):
    for data in bytes(size), random.Random(0).randbytes(size):
        encoding = Encoding("gzip", [data[:1000], data[1000:]])
        steps = 1
        while not encoding.step():
            steps += 1
        assert steps == max(1, math.ceil(size / 65536))
        decoding = Decoding("gzip", b"".join(encoding.parts), size)
        before, done = 0, False
        while not done:
            done = decoding.step()
            assert len(decoding.message) - before <= 256 * 1024
            before = len(decoding.message)
        assert decoding.message == data


@given(
    messages=st.lists(st.tuples(st.integers(0, 1), st.binary(max_size=40)), max_size=5),
    cuts=st.lists(st.integers(0, 250), max_size=8),
    directly=st.booleans(),
)
def test_messages_are_found_however_data_is_divided(messages, cuts, directly):
    wire = b"".join(b"".join(prefixed([data], bool(compressed))) for compressed, data in messages)
    assembler = Assembler(100)
    found = []
    cuts = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    for start, stop in zip(cuts, cuts[1:]):  # noqa: B905, RUF007
        piece = memoryview(wire)[start:stop]
        memory = assembler.memory() if directly else None
        if memory is not None:
            taken = min(len(memory), len(piece))
            memory[:taken] = piece[:taken]
            found += [message] if (message := assembler.filled(taken)) else []
            piece = piece[taken:]
        found += assembler.feed(piece)
        left = sum(len(data) + 5 for _, data in messages[: len(found)])
        assert assembler.partial == (stop > left)
        assert assembler.missing == 0 or assembler.missing == len(messages[len(found)][1]) + 5 + left - stop
    assert [(message.compressed, bytes(message.data)) for message in found] == messages
    assert not assembler.partial


def test_a_message_that_is_too_long_is_refused_before_it_is_held():
    assembler = Assembler(1000)
    with pytest.raises(ResourceExhausted, match="a message has 1001 bytes; at most 1000 are taken"):
        assembler.feed(b"\0\0\0\3\xe9")
    assert assembler.memory() is None


def test_a_prefix_has_a_flag():
    with pytest.raises(InvalidArgument, match="begins with 2"):
        Assembler(1000).feed(b"\2\0\0\0\0")


def trailers(error: OffloadError, begun: bool = True) -> dict[str, str]:
    return dict(hpack.Decoder().decode(failure(error, begun=begun)))


def test_trailers_of_an_error():
    assert trailers(NotFound("model 'é%' is not\nthere")) == {
        "grpc-status": "5",
        "grpc-message": "model '%C3%A9%25' is not%0Athere",
    }
    assert trailers(NotFound("x"), begun=False) == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-status": "5",
        "grpc-message": "x",
    }
    assert trailers(Unimplemented("x"))["grpc-accept-encoding"] == "identity,gzip,deflate"
    assert len(trailers(NotFound("x" * 5000))["grpc-message"]) == 1000
    assert trailers(NotFound("  x "))["grpc-message"] == "x"


def test_heads_and_other_responses():
    decode = hpack.Decoder().decode
    assert decode(HEADS["identity"]) == [(":status", "200"), ("content-type", "application/grpc")]
    assert decode(HEADS["gzip"])[-1] == ("grpc-encoding", "gzip")
    assert decode(SUCCESS) == [("grpc-status", "0")]
    assert decode(no_call(405)) == [(":status", "405"), ("allow", "POST")]
    assert decode(no_call(415)) == [(":status", "415"), ("accept-post", "application/grpc")]
