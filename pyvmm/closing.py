"""Giving back everything that was opened, whatever goes wrong with some of it. Imports nothing of pyvmm."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def close_all(closers: list[Callable[[], None]]) -> Exception | None:
    """Call and remove `closers`, last first, each of them whatever the others do; the first failure, if any."""
    failure: Exception | None = None
    while closers:
        try:
            closers.pop()()
        except Exception as error:
            failure = failure or error
    return failure
