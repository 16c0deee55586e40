"""Deadlines of many things, a few periods between them: set, put off and dropped in constant time. Imports nothing."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable


class Timers:
    """One deadline at most for each thing. What has the same period falls due in the order in which it was set, so that
    a dict for each period keeps them sorted; memory is bounded by the things that have a deadline.
    """

    __slots__ = ("_due", "_periods")

    def __init__(self) -> None:
        self._due: dict[float, dict[Hashable, float]] = {}
        self._periods: dict[Hashable, float] = {}

    def __contains__(self, thing: Hashable) -> bool:
        return thing in self._periods

    def set(self, thing: Hashable, now: float, period: float) -> None:
        """`thing` is due `period` seconds after `now`, and not when it was before. `now` never goes back."""
        self.drop(thing)
        self._due.setdefault(period, {})[thing] = now + period
        self._periods[thing] = period

    def drop(self, thing: Hashable) -> None:
        """`thing` has no deadline any more."""
        period = self._periods.pop(thing, None)
        if period is not None:
            del self._due[period][thing]

    def clear(self) -> None:
        """Nothing has one."""
        self._due.clear()
        self._periods.clear()

    def next(self) -> float | None:
        """The earliest deadline, or None."""
        return min((next(iter(due.values())) for due in self._due.values() if due), default=None)

    def expired(self, now: float) -> list[Hashable]:
        """What is due at `now`; it has no deadline any more."""
        found = []
        for due in self._due.values():
            for thing, at in due.items():
                if at > now:
                    break
                found.append(thing)
        for thing in found:
            self.drop(thing)
        return found
