"""Bodies that are compressed."""

import contextlib
import gzip
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zmq_offload.gateway.http.codings import Decoding, Encoding, choose
from zmq_offload.gateway.http.heads import Refused
from zmq_offload.gateway.http.messages import Compression


def raw_deflate(data: bytes) -> bytes:
    encoder = zlib.compressobj(wbits=-15)
    return encoder.compress(data) + encoder.flush()


CODERS = {"gzip": gzip.compress, "x-gzip": gzip.compress, "Deflate": zlib.compress, " deflate": raw_deflate}


def decode(coding: str, body: bytes, limit: int = 10_000_000) -> tuple[bytes, int]:
    """The decompressed body, and the number of steps."""
    decoding = Decoding(coding, body, limit)
    steps = 1
    while not decoding.step():
        steps += 1
    return bytes(decoding.body), steps


def encode(coding: str, parts: list[bytes]) -> bytes:
    encoding = Encoding(coding, parts)
    while not encoding.step():
        pass
    return b"".join(encoding.body)


@pytest.mark.parametrize("coding", CODERS)
@given(block=st.binary(max_size=300), repeats=st.sampled_from([0, 1, 1000]))
@example(block=bytes(256), repeats=1024)
@example(block=bytes(256), repeats=4096)
def test_a_body_is_decompressed(coding: str, block: bytes, repeats: int) -> None:
    data = block * repeats
    assert decode(coding, CODERS[coding](data))[0] == data


def test_a_body_is_decompressed_in_steps() -> None:
    data = bytes(5_000_000)
    assert decode("gzip", gzip.compress(data)) == (data, 20)


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_decompression(body: bytes) -> None:
    for coding in CODERS:
        with contextlib.suppress(Refused):
            decode(coding, body)


@pytest.mark.parametrize("coding", CODERS)
def test_a_body_must_be_complete_and_alone(coding: str) -> None:
    body = CODERS[coding](bytes(range(256)) * 1000)
    for wrong in (body[:-1], body[:20], body + b"x", body + bytes(100_000)):
        with pytest.raises(Refused) as error:
            decode(coding, wrong)
        assert error.value.status == 400


@pytest.mark.parametrize("coding", CODERS)
def test_a_bomb_is_stopped_at_the_limit(coding: str) -> None:
    decoding = Decoding(coding, CODERS[coding](bytes(10_000_000)), 1_000_000)

    def run() -> None:
        while not decoding.step():
            pass

    with pytest.raises(Refused, match="the body is too long when it is decompressed; send at most 1000000 bytes"):
        run()
    assert len(decoding.body) <= 1_000_000


def test_other_codings_are_refused() -> None:
    with pytest.raises(Refused, match="the content coding 'br' is not supported; use gzip or deflate") as error:
        Decoding("br", b"", 10)
    assert (error.value.status, error.value.headers) == (415, (("Accept-Encoding", "gzip, deflate"),))


@given(st.lists(st.binary(max_size=100).map(lambda block: block * 2000), max_size=4))
def test_a_response_is_compressed(parts: list[bytes]) -> None:
    assert gzip.decompress(encode("gzip", parts)) == b"".join(parts)
    assert zlib.decompress(encode("deflate", parts)) == b"".join(parts)


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("x-gzip", "gzip"),
        ("gzip, deflate", "gzip"),
        ("gzip;q=0.5, deflate", "deflate"),
        ("deflate; q=0.9,GZIP ; Q=0.8", "deflate"),
        ("gzip;q=0, deflate;q=0", None),
        ("gzip;q=0.5, identity", None),
        ("gzip;q=1;x=y, identity;q=0.5", "gzip"),
        ("br", None),
        ("*", "gzip"),
        ("*, gzip;q=0", "deflate"),
        ("*;q=0", None),
        ("gzip;q=high", None),
        ("gzip;x=y", "gzip"),
    ],
)
def test_a_coding_is_chosen(accepted: str, coding: str | None) -> None:
    assert choose(accepted, Compression.ACCEPTING) == coding
    assert choose(accepted, Compression.ASKING) == (None if "," in accepted else coding)
    assert choose(accepted, Compression.NONE) is None
