"""Giving everything back."""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.closing import close_all


def test_everything_is_closed_the_last_first_and_the_first_failure_is_told() -> None:
    done: list[str] = []

    def closer(name: str, failure: Exception | None = None) -> Callable[[], None]:
        def close() -> None:
            done.append(name)
            if failure is not None:
                raise failure

        return close

    first, second = ValueError("first"), OSError("second")
    closers = [closer("opened first"), closer("b", second), closer("c", first), closer("opened last")]
    assert close_all(closers) is first
    assert done == ["opened last", "c", "b", "opened first"]
    assert closers == [] and close_all(closers) is None
