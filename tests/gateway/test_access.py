"""Who is let in by which credential, and for which models."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.errors import PermissionDenied, Unauthenticated
from zmq_offload.gateway.access.decisions import PUBLIC, Listed, Open, Peer, identities
from zmq_offload.gateway.calls import check_allowed
from zmq_offload.net.credentials import token_entry
from zmq_offload.net.grants import Grant

NOBODY = Peer("1.2.3.4:5")
CAMERA = Grant("camera", frozenset({"ocr"}))
PRESS = Grant("press")
ACCESS = Listed({token_entry("t0ken"): CAMERA, "dns:press.example": PRESS}, certificates=True)


def test_open_access_is_for_all_models() -> None:
    assert Open().check(None, NOBODY).allows("anything")


@pytest.mark.parametrize("header", ["Bearer t0ken", "bearer  t0ken ", " BEARER t0ken"])
def test_a_token_lets_in(header: str) -> None:
    assert ACCESS.check(header, NOBODY, "/v2") is CAMERA


def test_a_certificate_lets_in_by_any_of_its_names() -> None:
    assert ACCESS.check(None, Peer("1.2.3.4:5", ("certificate:00", "dns:press.example"))) is PRESS


def test_either_credential_is_enough() -> None:
    known = Peer("1.2.3.4:5", ("dns:press.example",))
    assert ACCESS.check("Bearer wrong", known) is PRESS
    assert ACCESS.check("Bearer t0ken", Peer("1.2.3.4:5", ("dns:other",))) is CAMERA
    assert ACCESS.check("Bearer t0ken", known) is CAMERA


@pytest.mark.parametrize(
    ("header", "peer", "said"),
    [
        (None, NOBODY, "the request has no credential; send the header 'Authorization: Bearer TOKEN', or use a client"),
        ("Basic dTpw", NOBODY, "is not a bearer token; send the header 'Authorization: Bearer TOKEN'"),
        ("", NOBODY, "is not a bearer token"),
        ("Bearer ", NOBODY, "is not a bearer token"),
        ("Bearer wrong", NOBODY, "the token is not known"),
        (None, Peer("1.2.3.4:5", ("cn:other", "dns:x")), "no name of the client certificate is known.*cn:other, dns:x"),
    ],
)
def test_a_refusal_says_what_is_missing(header: str | None, peer: Peer, said: str) -> None:
    with pytest.raises(Unauthenticated, match=said):
        ACCESS.check(header, peer, "/v2/models/ocr/infer")


def test_a_refusal_names_certificates_only_if_they_are_asked_for() -> None:
    with pytest.raises(Unauthenticated) as refusal:
        Listed({}, certificates=False).check(None, NOBODY)
    assert "certificate" not in refusal.value.message


@pytest.mark.parametrize("path", sorted(PUBLIC))
def test_probes_need_no_credential(path: str) -> None:
    assert ACCESS.check(None, NOBODY, path) == ACCESS.check("Bearer wrong", NOBODY, path) == Grant("health check")
    assert ACCESS.check("Bearer t0ken", NOBODY, path) is CAMERA
    for other in ("", f"{path}//", path[1:], "/v2/models/ocr/ready"):
        with pytest.raises(Unauthenticated):
            ACCESS.check(None, NOBODY, other)


def test_a_replaced_list_counts_at_once() -> None:
    access = Listed({token_entry("a" * 20): PRESS}, certificates=False)
    access.check(f"Bearer {'a' * 20}", NOBODY)
    access.grants = {}
    with pytest.raises(Unauthenticated):
        access.check(f"Bearer {'a' * 20}", NOBODY)


@given(st.text() | st.text(st.characters()))
def test_no_other_text_is_let_in_nor_fails_otherwise(text: str) -> None:
    if text.strip() != "t0ken":
        with pytest.raises(Unauthenticated):
            ACCESS.check(f"Bearer {text}", NOBODY)
    with pytest.raises(Unauthenticated):
        ACCESS.check(text, NOBODY)


def test_a_certificate_is_known_by_fingerprint_alternative_names_and_common_name() -> None:
    names = {
        "subject": ((("countryName", "AT"),), (("commonName", "press"),)),
        "subjectAltName": (("DNS", "Press.Example"), ("IP Address", "10.0.0.1"), ("URI", "spiffe://plant/press")),
    }
    fingerprint = "certificate:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of FIPS 180-2
    assert identities(b"abc", names) == (fingerprint, "dns:press.example", "uri:spiffe://plant/press", "cn:press")
    assert identities(b"abc", {}) == (fingerprint,)


def test_a_grant_is_for_its_models_only() -> None:
    check_allowed("ocr", Grant("phone", frozenset({"ocr"})))
    with pytest.raises(PermissionDenied, match="phone is not for model 'pair'"):
        check_allowed("pair", Grant("phone", frozenset({"ocr"})))
