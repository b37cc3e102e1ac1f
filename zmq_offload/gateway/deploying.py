"""A fabric whose models are loaded and unloaded in the repository: by `config.toml`, which workers follow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from zmq_offload.artifacts import configedit
from zmq_offload.artifacts.config import CONFIG, read
from zmq_offload.artifacts.repository import Repository
from zmq_offload.errors import FailedPrecondition, Internal, OffloadError, Unavailable
from zmq_offload.gateway.calls import FAILED, Cancel, Fabric, check_allowed, log, tell
from zmq_offload.gateway.catalog import Catalog, Indexed, can_exist
from zmq_offload.gateway.control import ModelControl
from zmq_offload.gateway.front import Front
from zmq_offload.net.grants import Grant

_WAIT = 50.0
"""Seconds that workers have to follow. Triton's clients give up after 60."""

_POLL = 0.1
"""Seconds between two looks at what is served."""

_Answer = TypeVar("_Answer")


class DeployingFabric(Front):
    """A `zmq_offload.gateway.calls.Fabric` in front of another. Make it in its event loop.

    A model is loaded or unloaded for the whole fabric and for good, and the request ends when workers have followed
    within `wait` seconds. The repository is read and written in another thread.
    """

    def __init__(self, fabric: Fabric, repository: Repository, control: ModelControl, wait: float = _WAIT) -> None:
        super().__init__(fabric)
        self._repository = repository
        self._control = control
        self._wait = wait
        self._loop = asyncio.get_running_loop()
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def index(self, grant: Grant, ended: Callable[[list[Indexed] | OffloadError], None]) -> Cancel:
        return self._start(lambda: self._index(grant), ended)

    def load(self, name: str, grant: Grant, ended: Callable[[OffloadError | None], None]) -> Cancel:
        return self._start(lambda: self._load(name, grant), ended)

    def unload(self, name: str, grant: Grant, ended: Callable[[OffloadError | None], None]) -> Cancel:
        return self._start(lambda: self._unload(name, grant), ended)

    # --- the steps ------------------------------------------------------------------------------------------

    async def _index(self, grant: Grant) -> list[Indexed]:
        catalog = await self._listed(grant)
        found = {(entry.name, entry.version): entry for entry in catalog.indexed()}
        for entry in await asyncio.to_thread(_repository_index, self._repository, grant):
            found.setdefault((entry.name, entry.version), entry)
        return [found[key] for key in sorted(found)]

    async def _load(self, name: str, grant: Grant) -> None:
        wanted = await self._change(name, grant, _load)
        if not wanted:
            raise Internal(f"failed to load {name!r:.80}, failed to poll from model repository: it has no such model")
        await self._followed(name, grant, lambda served: wanted <= served)

    async def _unload(self, name: str, grant: Grant) -> None:
        if await self._change(name, grant, _unload):
            await self._followed(name, grant, lambda served: not served)
        elif await self._served(name, grant):
            raise FailedPrecondition(
                f"model {name!r} is not in this gateway's repository; unload it in the one that its workers follow"
            )

    async def _change(self, name: str, grant: Grant, change: Callable[[Repository, str], set[int]]) -> set[int]:
        if (refusal := self._control.refusal()) is not None:
            raise refusal
        check_allowed(name, grant)
        if not can_exist(name):
            return set()
        async with self._writing:
            return await asyncio.to_thread(change, self._repository, name)

    async def _followed(self, name: str, grant: Grant, enough: Callable[[set[int]], bool]) -> None:
        """Wait until enough is served, and nothing that should not be."""
        end = time.monotonic() + self._wait
        while not enough(served := await self._served(name, grant)):
            if time.monotonic() >= end:
                listing = ", ".join(map(str, sorted(served))) or "none"
                raise Unavailable(
                    f"{CONFIG} of model {name!r} is written, but workers did not follow within {self._wait:g} s; "
                    f"served versions: {listing} (the workers' logs say why)"
                )
            await asyncio.sleep(_POLL)

    async def _served(self, name: str, grant: Grant) -> set[int]:
        return {model.version for model in (await self._listed(grant, name)).models if model.name == name}

    async def _listed(self, grant: Grant, name: str | None = None) -> Catalog:
        answered: asyncio.Future[Catalog | OffloadError] = self._loop.create_future()

        def ended(answer: Catalog | OffloadError) -> None:
            if not answered.done():
                answered.set_result(answer)

        cancel = self._fabric.models(grant, ended, name)
        try:
            answer = await answered
        finally:
            cancel()
        if isinstance(answer, OffloadError):
            raise answer
        return answer

    def _start(
        self, work: Callable[[], Coroutine[Any, Any, _Answer]], ended: Callable[[_Answer | OffloadError], None]
    ) -> Cancel:
        async def run() -> None:
            answer: _Answer | OffloadError
            try:
                answer = await work()
            except OffloadError as error:
                answer = error
            except Exception:
                log.exception("the repository cannot be used")
                answer = Internal(FAILED)
            tell(ended, answer)

        task = self._loop.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def cancel() -> None:
            task.cancel()

        return cancel


def _load(repository: Repository, name: str) -> set[int]:
    """Let a model be served. Return its versions to serve; none if the repository does not have it."""
    there = repository.versions(name)
    if not there:
        return set()
    config = read(repository.root / name)
    if not config.serves(there):  # else it stays as it is said, such as "the latest two"
        config = configedit.load(repository, name)
    return set(config.serves(there))


def _unload(repository: Repository, name: str) -> set[int]:
    """Let no version of a model be served. Return those that are in the repository."""
    there = set(repository.versions(name))
    if there:
        configedit.unload(repository, name)
    return there


def _repository_index(repository: Repository, grant: Grant) -> list[Indexed]:
    """The versions in the repository, with why each is not served if no worker serves it."""
    found = []
    for name in repository.models():
        if not grant.allows(name):
            continue
        there = repository.versions(name)
        try:
            wanted = read(repository.root / name).serves(there)
            reason = "unloaded"
        except OffloadError:
            wanted, reason = [], f"its {CONFIG} is wrong, and the workers' logs say how"
        found += [
            Indexed(name, version, False, "no worker serves it" if version in wanted else reason) for version in there
        ]
    return found
