"""What ends of a connection offer, and why they do not share memory."""

from __future__ import annotations

import pytest

from zmq_offload.net.pieces import PROPERTY as PIECES
from zmq_offload.net.sharedmemory.offers import PROPERTY, Offered, offered, read_offer, why_not

OWN = Offered(b"h" * 16, 1, 2, b"c" * 16)
SAME = OWN._replace(pid=3)
OTHER = SAME._replace(host=b"o" * 16)


def told(offer: Offered | None, *, ours: bool = True) -> dict[bytes, bytes]:
    found = {PIECES.lower(): b"1"} if ours else {}
    return found if offer is None else found | {PROPERTY.lower(): offer.packed()}


def test_an_offer_is_read_as_it_was_packed() -> None:
    assert read_offer(OWN.packed()) == OWN == offered(told(OWN))
    assert OWN.arena == (1, 2, b"c" * 16)
    assert read_offer(OWN.packed()[1:]) is None
    assert offered({}) is None


@pytest.mark.parametrize(
    ("own", "theirs", "is_near", "same_user", "why"),
    [
        (OWN, told(SAME), False, None, "another host"),
        (None, told(SAME), True, None, "not possible here"),
        (OWN, told(OTHER), True, False, "another user"),
        (OWN, told(OTHER), True, None, "another user or container"),
        (OWN, told(None), True, True, "switched off"),
        (OWN, told(None, ours=False), True, None, "another program"),
        (OWN, told(SAME), True, True, "cannot be opened"),
    ],
)
def test_why_two_ends_do_not_share(
    own: Offered | None, theirs: dict[bytes, bytes], is_near: bool, same_user: bool | None, why: str
) -> None:
    assert why_not(own, theirs, is_near=is_near, same_user=same_user) == why
