"""examples/monitoring: the rules by promtool; what alerts and dashboard ask for, by a real Prometheus and fabric."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.support.gateway_traffic import GrpcCaller, HttpCaller, traffic
from tests.support.processes import ROOT, eventually, faulty_workers, running_gateway_with_broker, wait_for_workers
from zmq_offload import Client
from zmq_offload.errors import NotFound, OffloadError

EXAMPLES = ROOT / "examples/monitoring"
DASHBOARD: dict[str, Any] = json.loads((EXAMPLES / "grafana.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES: list[dict[str, Any]] = yaml.safe_load((EXAMPLES / "alerts.yml").read_text())["groups"][0]["rules"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]

OF_A_CACHE = {"zmq_offload_gateway_cache_hits_total", "zmq_offload_gateway_cache_misses_total"}
"""Series of models that have a cache; `tests/gateway/test_metrics.py` has them."""


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"needs {name}, of the Debian package prometheus")
    return path


def named(queries: Iterable[str]) -> set[str]:
    """The series that queries name."""
    return {name for query in queries for name in re.findall(r"\b(?:zmq_offload_|process_)\w+", query)}


@pytest.mark.parametrize(
    "command",
    [("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")],
)
def test_promtool_accepts_the_files(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [program("promtool"), *command], cwd=EXAMPLES, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_shown_to_fire_and_to_be_silent() -> None:
    cases = yaml.safe_load((EXAMPLES / "alerts_test.yml").read_text())["tests"]
    shown = {(at["alertname"], bool(at["exp_alerts"])) for case in cases for at in case["alert_rule_test"]}
    assert shown == {(rule["alert"], fires) for rule in RULES for fires in (True, False)}
    assert all(rule["labels"]["severity"] in ("critical", "warning") for rule in RULES)
    assert all({"summary", "description"} == rule["annotations"].keys() for rule in RULES)


def test_the_panels_of_the_dashboard_do_not_overlap_and_say_what_they_show() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["type"] in ("timeseries", "stat") and panel["title"] and panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(set(references)) == len(references)
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used - {"__rate_interval"} == variables


LEGACY = {
    "/id",
    "/annotations/list/0/builtIn",
    *(f"/annotations/list/1/{name}" for name in ("step", "tagKeys", "textFormat", "titleFormat")),
    *(f"/templating/list/{at}/definition" for at in (1, 2)),
}
"""What Grafana itself writes and reads, and its schema does not have."""


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All values of JSON that have no parts, by their paths."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if parts is None:
        yield path, value
        return
    for name, part in parts:
        yield from leaves(part, f"{path}/{name}")


def test_the_dashboard_has_what_grafanas_schema_has() -> None:
    """Grafana's own classes read it, and write it again with nothing lost and nothing different."""
    reason = "needs the package grafana-foundation-sdk"
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason=reason)
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    pytest.importorskip("grafana_foundation_sdk.cog.plugins").register_default_plugins()
    written = dict(leaves(json.loads(encoder.JSONEncoder().encode(models.Dashboard.from_json(DASHBOARD)))))
    missing = {path for path, value in leaves(DASHBOARD) if written.get(path, ...) != value}
    assert missing == LEGACY


class Prometheus:
    """Asks a Prometheus by its HTTP API."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def ready(self) -> bool:
        try:
            return bool(self.get("targets")["activeTargets"])
        except OSError:
            return False

    def query(self, query: str) -> list[float]:
        return [float(sample["value"][1]) for sample in self.get("query", query=query)["result"]]


@contextmanager
def prometheus(metrics: str, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus that scrapes `metrics` five times a second, with the rules of the example."""
    config = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "200ms", "evaluation_interval": "200ms"}
    config["rule_files"] = [str(EXAMPLES / "alerts.yml")]
    config["scrape_configs"] = [{"job_name": "zmq-offload-gateway", "static_configs": [{"targets": [metrics]}]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            asked = Prometheus(address)
            eventually(asked.ready)
            yield asked
        finally:
            process.terminate()


@pytest.mark.observers
def test_prometheus_finds_all_that_alerts_and_dashboard_ask_for(tmp_path: Path) -> None:
    program("prometheus")
    with (
        running_gateway_with_broker("--metrics", "127.0.0.1:0", ZMQ_OFFLOAD_MAX_ATTEMPTS="1") as (gateway, fabric),
        faulty_workers(fabric.backend, "--processes", "2", "--heartbeat", "0.2"),
        prometheus(gateway.process.wait_for(r"metrics=(\S+)")[1], tmp_path) as asked,
    ):
        wait_for_workers(fabric.frontend, 2)
        callers = [partial(HttpCaller, gateway.http), partial(GrpcCaller, gateway.grpc)]
        with traffic(callers, elements=100) as load, Client(fabric.frontend) as client:
            with pytest.raises(NotFound):
                client.infer("nothing", {"x": np.zeros(1)}, timeout=5)
            with pytest.raises(OffloadError):
                client.infer("echo", {"kill": np.zeros(1)}, timeout=20)
            eventually(lambda: sum(asked.query("zmq_offload_lost_workers_total")) == 1)
            eventually(lambda: sum(asked.query('zmq_offload_workers{state="ready"}')) == 2)
            # The bytes that are counted of inputs are a few more than those of the tensor, which has 8 for a number.
            share = "sum(zmq_offload_gateway_received_bytes_total) / sum(zmq_offload_gateway_rows_total)"
            assert 8 < asked.query(share)[0] < 12
            eventually(lambda: asked.query('rate(zmq_offload_requests_total{status="ok"}[2s]) > 20'))
            existing = set(asked.get("label/__name__/values"))
            assert named([*QUERIES, *(rule["expr"] for rule in RULES)]) - existing == OF_A_CACHE
            assert named([json.dumps(DASHBOARD["templating"])]) <= existing | {"zmq_offload_"}
            for query in QUERIES:
                for word, value in (("$__rate_interval", "5s"), ("$instance", ".*"), ("$model", ".*")):
                    query = query.replace(word, value)
                if not named([query]) & OF_A_CACHE:
                    assert asked.query(query), f"no values for {query}"
            assert load.total > 0
        total = 'sum(zmq_offload_gateway_requests_total{status="ok"})'
        eventually(lambda: asked.query(total) == [load.total])
        rules = asked.get("rules")["groups"][0]["rules"]
        assert [(rule["name"], rule["health"]) for rule in rules] == [(rule["alert"], "ok") for rule in RULES]
        assert not load.faults, str(load)
