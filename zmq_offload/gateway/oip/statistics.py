"""The statistics of models as JSON objects, with the names that Triton gives them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from zmq_offload.gateway.catalog import Model
from zmq_offload.gateway.oip.metadata import batched
from zmq_offload.gateway.statistics import Duration, Statistics


def model_stats(models: Iterable[Model], statistics: Statistics) -> dict[str, object]:
    """The statistics of versions.

    A worker tells one time for a request, which has the taking in of inputs and the giving out of outputs in it. So
    "compute_input" and "compute_output" take no time here. Workers do not tell the batches that they make of requests
    either: "execution_count" counts requests, and "batch_stats" has them by their own batch size.
    """
    return {"model_stats": [_version(model, statistics) for model in models]}


def _version(model: Model, statistics: Statistics) -> dict[str, object]:
    found = statistics.of(model.name, model.version)
    rows = batched(model)
    return {
        "name": model.name,
        "version": str(model.version),
        "last_inference": found.last,
        "inference_count": found.inferences(rows),
        "execution_count": found.run.count,
        "inference_stats": {
            "success": _duration(found.success),
            "fail": _duration(found.fail),
            "queue": _duration(found.queue),
            **_computed(found.compute),
            "cache_hit": _duration(found.cache_hit),
            "cache_miss": _duration(found.cache_miss),
        },
        "response_stats": {},
        "batch_stats": [{"batch_size": size, **_computed(compute)} for size, compute in found.batches(rows)],
        "memory_usage": [],
    }


def _computed(compute: Duration) -> dict[str, object]:
    copied = {"count": compute.count, "ns": 0}
    return {"compute_input": copied, "compute_infer": _duration(compute), "compute_output": copied}


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}
