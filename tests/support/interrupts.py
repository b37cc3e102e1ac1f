"""Ctrl-C at each place of a module's code, one after the other."""

from __future__ import annotations

import gc
import linecache
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any


def interrupted_everywhere(module: ModuleType) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Yield a function that runs its argument, each time with an interrupt at another place of the module's code, and
    lastly with none. A place is the beginning or the end of a function, or a line."""
    number = 0
    while True:
        number += 1
        place = _Place(module, number)
        yield place.run
        if not place.reached:
            assert number > 1, "nothing of the module was run"
            return


class _Place:
    def __init__(self, module: ModuleType, number: int) -> None:
        self._file, self._left = module.__file__, number
        self._bodies: Counter[tuple[FrameType, int]] = Counter()

    @property
    def reached(self) -> bool:
        return self._left <= 0

    def run(self, work: Callable[[], object]) -> None:
        """Run `work`, which may raise the KeyboardInterrupt or catch it."""
        before = sys.gettrace()
        # What else is collected meanwhile runs code of the module, too, where no interrupt is raised to anybody.
        gc.collect()
        gc.disable()
        sys.settrace(self._trace)
        try:
            work()
        except KeyboardInterrupt:
            assert self.reached
        finally:
            sys.settrace(before)
            gc.enable()
            self._bodies.clear()

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != self._file:
            return None
        if event == "line" and self._ends_a_body(frame):
            return self._trace
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt(f"{frame.f_code.co_name}, line {frame.f_lineno}, {event}")
        return self._trace

    def _ends_a_body(self, frame: FrameType) -> bool:
        """Whether a `with` is left. Python lets no interrupt come between the body and the release of a lock."""
        if not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
            return False
        self._bodies[frame, frame.f_lineno] += 1
        return self._bodies[frame, frame.f_lineno] % 2 == 0
