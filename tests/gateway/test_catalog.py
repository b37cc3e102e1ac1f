"""The list of models: reading the broker's answer, what is shown of it, when it is asked for again, model control."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.gateway.fake_fabric import model
from zmq_offload.errors import Internal, NotFound, ProtocolError, Unavailable
from zmq_offload.gateway.catalog import CachePolicy, Catalog, catalog_of
from zmq_offload.gateway.control import ModelControl
from zmq_offload.gateway.inquiry import FRESH, RECENT, Inquiry
from zmq_offload.protocol.tensors import TensorSpec


def entry(name: str = "m", version: int = 1, **more: Any) -> dict[str, Any]:
    return {"name": name, "version": version, "inputs": [], "outputs": [], "workers": 1} | more


def test_the_brokers_answer_is_read_in_order() -> None:
    x = {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
    found = catalog_of([entry("m", 2, latest=False), entry("m", 1, latest=True, inputs=[x]), entry("a", latest=True)])
    assert [(one.name, one.version, one.latest) for one in found.models] == [
        ("a", 1, True),
        ("m", 1, True),
        ("m", 2, False),
    ]
    assert found.find("m").inputs == (TensorSpec("x", "FP32", (-1, 3)),)
    assert found.find("m", 2).version == 2
    assert catalog_of([entry(max_batch=8)]).find("m").max_batch == 8


def test_the_cache_and_the_labels_of_a_version_are_those_of_its_configuration() -> None:
    config = {"cache": {"seconds": 60, "build": "sha256:1"}, "labels": ["stable"], "canary": {"share": 0.1}}
    found = catalog_of([entry(config=config)]).find("m")
    assert (found.cache, found.labels, found.canary) == (CachePolicy(60, "sha256:1"), ("stable",), True)


@pytest.mark.parametrize(
    "config", [{"labels": [1]}, {"labels": "x"}, {"cache": {"seconds": 0}}, {"cache": {"seconds": 1, "build": 2}}]
)
def test_a_configuration_that_cannot_be_read_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="of a model of the broker's list"):
        catalog_of([entry(config=config)])


def test_labels_stand_for_versions() -> None:
    old, new = entry("m", 1, latest=False, labels=["stable", "a"]), entry("m", 2, latest=True, labels=[])
    found = catalog_of([old, new])
    assert found.find("m", label="stable").version == 1
    assert [one.is_meant(None, "stable") for one in found.models] == [True, False]
    with pytest.raises(NotFound, match="model 'm' has no label 'next'; it has a, stable"):
        found.find("m", label="next")
    assert Catalog([], found.models).awaited("m", label="a").version == 1, "its worker may come back"


def test_an_older_broker_does_not_say_which_version_is_the_latest() -> None:
    found = catalog_of([entry("m", 1), entry("m", 3), entry("m", 2), entry("a", 7)])
    assert (found.find("m").version, found.find("a").version) == (3, 7)


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        [1],
        [{}],
        [entry(version="1")],
        [entry(name=1)],
        [entry(workers=None)],
        [entry(max_batch="8")],
        [entry(inputs=None)],
        [entry(labels="stable")],
        [entry(labels=[1])],
        [entry(config={"cache": {"seconds": 0}})],
        [entry(outputs=[{"name": "x"}])],
    ],
)
def test_anything_else_is_a_protocol_error(body: object) -> None:
    with pytest.raises(ProtocolError):
        catalog_of(body)


def test_what_is_not_found_names_what_is_served() -> None:
    catalog = Catalog([model("a"), model("b", version=3)])
    with pytest.raises(NotFound, match="model 'c' is not served; served are: a, b"):
        catalog.find("c")
    with pytest.raises(NotFound, match="model 'b' has no version 2; the served version is 3"):
        catalog.find("b", 2)
    with pytest.raises(NotFound, match="the served versions are 3, 4"):
        Catalog([model("b", version=3), model("b", version=4)]).find("b", 2)
    with pytest.raises(NotFound, match=r"served are: m0, m1, .*, m19, and 10000 more$"):
        Catalog([model(f"m{number}") for number in range(10_020)]).find("c")
    with pytest.raises(NotFound, match="served are: none"):
        Catalog([]).find("c")
    assert catalog.has("a") and catalog.has("b", 3) and not catalog.has("b", 2) and not catalog.has("c")


def test_a_request_may_be_for_a_version_that_is_gone() -> None:
    old = Catalog([model("a"), model("b", version=1), model("c")])
    new = Catalog([model("b", version=2), model("c")]).after(old)
    assert [(one.name, one.version) for one in new.gone] == [("a", 1), ("b", 1)]
    assert new.awaited("a") == new.awaited("a", 1) == model("a")
    assert (new.awaited("b").version, new.awaited("b", 1).version) == (2, 1)
    for wanted in (("a", 2), ("d", None)):
        with pytest.raises(NotFound):
            new.awaited(*wanted)
    with pytest.raises(NotFound):
        new.find("a")
    assert not new.has("a")
    with pytest.raises(NotFound):
        new.seen(lambda name: name != "a", set()).awaited("a")
    with pytest.raises(NotFound):
        new.seen(lambda _: True, {"a"}).awaited("a")
    back = Catalog([model("a"), model("b", version=2)]).after(new)
    assert [(one.name, one.version) for one in back.gone] == [("c", 1), ("b", 1)]
    many = Catalog([model(f"m{number}") for number in range(5000)])
    assert len(Catalog([]).after(many).gone) == 1024


def test_others_models_are_not_seen_and_closed_ones_are_not_found() -> None:
    catalog = Catalog([model("a"), model("b")])
    assert catalog.seen(lambda _: True, set()) is catalog
    assert [one.name for one in catalog.seen(lambda name: name == "b", set()).models] == ["b"]
    closed = catalog.seen(lambda _: True, {"a"})
    assert [(one.name, one.open) for one in closed.models] == [("a", False), ("b", True)]
    assert closed.versions("a") == [] and closed.has("a")
    with pytest.raises(NotFound, match="model 'a' has no available versions; it is unloaded"):
        closed.find("a")
    with pytest.raises(NotFound, match=re.escape("served are: b")):
        closed.find("c")


def test_an_answer_is_used_for_a_moment() -> None:
    inquiry, told = Inquiry(), list[object]()
    assert inquiry.known("a", None, 5.0) is None
    assert inquiry.wait(told.append) == (1, True)
    assert inquiry.wait(told.append) == (2, False), "one query serves both"
    catalog = Catalog([model("a")])
    assert inquiry.answered(catalog, 5.0) == [told.append, told.append]
    assert inquiry.known("a", None, 5.0 + 0.9 * FRESH) is catalog
    assert inquiry.known(None, None, 5.0 + 0.9 * FRESH) is catalog
    assert inquiry.known("a", None, 5.0 + FRESH) is None
    inquiry.answered(Catalog([]), 6.0)
    assert inquiry.known(None, None, 6.0 + 0.5 * RECENT) is not None
    assert inquiry.known(None, None, 6.0 + 2 * RECENT) is None, "workers may have just come"
    assert inquiry.wait(told.append) == (3, True)


def test_a_missing_model_is_asked_for_sooner() -> None:
    inquiry = Inquiry()
    inquiry.wait(lambda _: None)
    inquiry.answered(Catalog([model("a")]), 5.0)
    for name, version in (("b", None), ("a", 2)):
        assert inquiry.known(name, version, 5.0 + 0.5 * RECENT) is not None
        assert inquiry.known(name, version, 5.0 + 2 * RECENT) is None


def test_who_leaves_is_not_told_and_the_query_is_still_under_way() -> None:
    inquiry = Inquiry()
    number, _ = inquiry.wait(lambda _: None)
    inquiry.leave(number)
    assert inquiry.wait(print) == (2, False)
    assert inquiry.answered(Unavailable("gone"), 1.0) == [print]
    inquiry.leave(2)
    assert inquiry.catalog is None and inquiry.known(None, None, 1.0) is None


def test_models_are_closed_and_opened() -> None:
    control, served = ModelControl(allowed=True), Catalog([model("a")])
    assert control.refusal() is None
    control.unload("a", served)
    assert control.closed == {"a"}
    assert control.load("a", served) is None and control.closed == set()
    control.unload("b", served)
    assert control.closed == set(), "names that nobody serves would fill the memory"
    error = control.load("b", served)
    assert isinstance(error, Internal)
    assert error.message == "failed to load 'b', failed to poll from model repository: no worker serves it"


def test_model_control_is_off_unless_it_is_switched_on() -> None:
    refusal = ModelControl(allowed=False).refusal()
    assert isinstance(refusal, Unavailable)
    assert refusal.message == "explicit model load / unload is not allowed; start the gateway with --model-control"


def test_versions_that_are_gone_are_kept_apart_from_those_that_are_served() -> None:
    before = catalog_of([entry("m", 1), entry("m", 2)])
    assert before.after(None) is before
    found = catalog_of([entry("m", 2)]).after(before)
    assert [one.version for one in found.models] == [2] and [one.version for one in found.gone] == [1]
