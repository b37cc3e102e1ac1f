"""Canaries that failed their trial at a broker, as long as the configuration has them. Pure.

A broker keeps nothing when it ends, and a fabric may have several. So the workers remember what a broker told them, and
announce it to all.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from zmq_offload.artifacts.config import ModelConfig
from zmq_offload.errors import ProtocolError
from zmq_offload.protocol import limits


class ReturnedCanaries:
    """Why canaries were returned, by model."""

    def __init__(self) -> None:
        self._texts: dict[str, tuple[object, str]] = {}

    def told(self, model: str, body: object, configs: Mapping[str, ModelConfig]) -> bool:
        """A broker says that a canary was returned. Returns whether that is news; it is not if the configuration has
        another canary by now. Raises ProtocolError."""
        text = body.get("text") if isinstance(body, dict) else None
        if not isinstance(body, dict) or not isinstance(text, str) or not text or len(text) > limits.MESSAGE_CHARS:
            raise ProtocolError("the body of a Returned is a map with a canary and a text")
        canary = _canary_of(configs.get(model))
        if canary is None or canary != body.get("canary") or model in self._texts:
            return False
        self._texts[model] = canary, text
        return True

    def keep(self, configs: Mapping[str, ModelConfig]) -> None:
        """Forget canaries that the configurations do not have any more."""
        for model, (canary, _) in list(self._texts.items()):
            if _canary_of(configs.get(model)) != canary:
                del self._texts[model]

    def of(self, model: str) -> str:
        """Why the canary of a model was returned; empty if it was not."""
        return self._texts[model][1] if model in self._texts else ""


def _canary_of(config: ModelConfig | None) -> object:
    return None if config is None or config.canary is None else msgspec.to_builtins(config.canary)
