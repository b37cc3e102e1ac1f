"""The example's Mask R-CNN from end to end, and a plan's measurements with real processes. No speed is asserted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from examples.mask_rcnn.run import main
from examples.mask_rcnn.timeline import spans, timeline
from tests.support.processes import ROOT
from zmq_offload.client.results import Timings
from zmq_offload.plan.costs import Network
from zmq_offload.plan.overhead import measure_overhead
from zmq_offload.plan.slow import Seen
from zmq_offload.protocol.tensors import TensorSpec


def test_the_overhead_of_a_request_is_measured() -> None:
    overhead = measure_overhead()
    assert 0 < overhead.request < 1
    assert 0 <= overhead.byte < 1e-3
    assert overhead.of(1000) >= overhead.request


def test_the_small_mask_rcnn_runs_every_way(tmp_path: Path) -> None:
    picture = tmp_path / "timeline.png"
    arguments = ["--small", "--frames", "15", "--rtt", "4ms", "--bandwidth", "50Mbit", "-o", str(picture)]
    done = subprocess.run(
        [sys.executable, "-m", "examples.mask_rcnn", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "features FP16[1,16,4,3], 384 bytes; the picture has 36,864" in said
    rows = re.findall(r"^(device only|one by one|pipelined) .*? ([\d.]+) +([\d.]+) +[\d.]+$", said, re.M)
    assert [row[0] for row in rows] == ["device only", "one by one", "pipelined", "one by one", "pipelined"]
    assert all(float(rate) > 0 and float(latency) > 0 for _, rate, latency in rows)
    # Every latency includes the round trip of 4 ms.
    assert all(float(latency) > 4 for _, _, latency in rows[3:])
    assert re.search(r"^bound:  (device|uplink|server|downlink), ", said, re.M)
    with Image.open(picture) as image:
        assert len(image.getcolors(1 << 20) or ()) > 20


def test_bad_options_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, says in (
        (["--bandwidth", "50"], "bandwidth '50' has no unit"),
        (["--slowdown", "0"], "'0' is not a factor from 1 to 10000"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert says in capsys.readouterr().err.splitlines()[-1]


def test_the_timeline_shows_when_each_stage_had_each_item() -> None:
    answer = (TensorSpec("boxes", "FP32", (8, 4)),)
    link = Network(8e6, 0.010)

    def seen(start: float) -> Seen:
        # 10 ms on the device, then 30 ms of request: of them the broker had 12, of which the worker computed 8.
        return Seen(start, start + 0.010, start + 0.010, start + 0.040, Timings(0.002, 0.008, 0.012, 0.030), answer)

    stages = spans(seen(1.0), link)
    assert list(stages) == ["device", "uplink", "server", "downlink"]
    assert stages["device"] == (1.0, 1.010)
    down = stages["downlink"]
    assert down[1] == 1.040
    assert 0.005 < down[1] - down[0] < 0.006  # half of the round trip, and a few hundred bytes
    assert stages["server"][1] == down[0]
    assert abs(stages["server"][1] - stages["server"][0] - 0.008) < 1e-9
    assert abs(stages["uplink"][1] - (down[0] - 0.012)) < 1e-9 and stages["uplink"][0] == 1.010
    chart = timeline([seen(1.0 + 0.01 * at) for at in range(30)], link, "title")
    assert list(chart.items) == list(range(10, 20))
    # The next item's stage on the device begins while this one's request is in flight.
    assert chart.items[10]["uplink"][0] < chart.items[11]["device"][1]
    assert chart.items[11]["device"][0] < chart.items[10]["uplink"][1]
    assert not timeline([], link, "nothing").items
