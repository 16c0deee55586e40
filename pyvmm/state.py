"""Saving and restoring the state of a model: which of its attributes that is, and what each may be.

Imports stateful. A model declares its state as data, next to what it is about; what is saved is plain enough for JSON.
It is judged whole before any of it is restored: names, types and ranges. Whatever else follows from it (the level of an
interrupt line, what a register selects) is the model's own business, in `restored()`.
"""

from __future__ import annotations

from collections import deque

from pyvmm.stateful import Stateful as Stateful

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol

    class Kind(Protocol):
        """What an attribute may be."""

        def save(self, value: Any) -> Any:
            """`value` as JSON can have it."""

        def judge(self, saved: Any) -> Any:
            """The value again. Raises StateError."""


class StateError(ValueError):
    """Saved state is not what it should be, or cannot be saved; the text says which and what was expected."""


class Number:
    """A whole number from `low` to `high`."""

    def __init__(self, high: int, low: int = 0) -> None:
        self.low = low
        self.high = high

    def save(self, value: int) -> int:
        return value

    def judge(self, saved: Any) -> int:
        if type(saved) is not int or not self.low <= saved <= self.high:
            raise StateError(f"is {_shown(saved)} (expected a number from {self.low} to {self.high})")
        return saved


class Flag:
    """True or false."""

    def save(self, value: bool) -> bool:
        return bool(value)

    def judge(self, saved: Any) -> bool:
        if type(saved) is not bool:
            raise StateError(f"is {_shown(saved)} (expected true or false)")
        return saved


class Seconds:
    """A moment, or a stretch of time."""

    def save(self, value: float) -> float:
        return value

    def judge(self, saved: Any) -> float:
        if type(saved) not in (int, float) or not -1e18 < saved < 1e18:
            raise StateError(f"is {_shown(saved)} (expected seconds)")
        return float(saved)


class Text:
    """A line of up to `limit` characters."""

    def __init__(self, limit: int = 4096) -> None:
        self.limit = limit

    def save(self, value: str) -> str:
        return value

    def judge(self, saved: Any) -> str:
        if type(saved) is not str or len(saved) > self.limit:
            raise StateError(f"is {_shown(saved)} (expected text of up to {self.limit} characters)")
        return saved


class Bytes:
    """Bytes: `length` of them, or, if that is None, up to `limit`. Saved as hexadecimal digits."""

    def __init__(self, length: int | None = None, limit: int = 1 << 20, container: type = bytearray) -> None:
        self.length = length
        self.limit = limit
        self.container = container

    def save(self, value: bytes) -> str:
        return value.hex()

    def judge(self, saved: Any) -> Any:
        try:
            value = bytes.fromhex(saved)
        except (TypeError, ValueError):
            raise StateError(f"is {_shown(saved)} (expected bytes as hexadecimal digits)") from None
        if len(value) > self.limit or (self.length is not None and len(value) != self.length):
            raise StateError(f"has {len(value)} bytes (expected {self.limit if self.length is None else self.length})")
        return self.container(value)


class Several:
    """Up to `limit` of one kind, or, with `exact`, just as many. The attribute is of type `container`."""

    def __init__(self, kind: Kind, limit: int, *, exact: bool = False, container: type = list) -> None:
        self.kind = kind
        self.limit = limit
        self.exact = exact
        self.container = container

    def save(self, value: Any) -> list[Any]:
        return [self.kind.save(one) for one in (sorted(value) if self.container in (set, frozenset) else value)]

    def judge(self, saved: Any) -> Any:
        if type(saved) is not list or len(saved) > self.limit or (self.exact and len(saved) != self.limit):
            bound = "" if self.exact else "up to "
            raise StateError(f"is {_shown(saved)} (expected a list of {bound}{self.limit})")
        return self.container(self.kind.judge(one) for one in saved)


class Maybe:
    """One of that kind, or None."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def save(self, value: Any) -> Any:
        return None if value is None else self.kind.save(value)

    def judge(self, saved: Any) -> Any:
        return None if saved is None else self.kind.judge(saved)


class Numbered:
    """A dict from numbers up to `high` to one kind."""

    def __init__(self, high: int, kind: Kind) -> None:
        self.pairs = Several(Pair(Number(high), kind), high + 1)

    def save(self, value: Mapping[int, Any]) -> list[Any]:
        return self.pairs.save(value.items())

    def judge(self, saved: Any) -> dict[int, Any]:
        return dict(self.pairs.judge(saved))


class Pair:
    """Two values of a kind each."""

    def __init__(self, first: Kind, second: Kind) -> None:
        self.kinds = first, second

    def save(self, value: tuple[Any, Any]) -> list[Any]:
        return [kind.save(one) for kind, one in zip(self.kinds, value, strict=True)]

    def judge(self, saved: Any) -> tuple[Any, Any]:
        if type(saved) is not list or len(saved) != 2:
            raise StateError(f"is {_shown(saved)} (expected a pair)")
        return self.kinds[0].judge(saved[0]), self.kinds[1].judge(saved[1])


FLAG = Flag()
SECONDS = Seconds()
U8, U16, U32, U64 = (Number((1 << bits) - 1) for bits in (8, 16, 32, 64))


def queue_of(kind: Kind, limit: int) -> Several:
    """A deque of up to `limit` of `kind`."""
    return Several(kind, limit, container=deque)


def saved(model: Any, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """The attributes of `model` that `kinds` names, under their names without a leading underscore."""
    return {name.lstrip("_"): kind.save(getattr(model, name)) for name, kind in kinds.items()}


def judged(what: str, state: Any, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """The values in `state`, by the attributes' names. Raises StateError, which begins with `what`."""
    if type(state) is not dict:
        raise StateError(f"{what}: is {_shown(state)} (expected an object)")
    names = {name.lstrip("_"): name for name in kinds}
    for name in state:
        if name not in names:
            raise StateError(f"{what}: {name!r} is nothing that it has")
    found = {}
    for name, attribute in names.items():
        if name not in state:
            raise StateError(f"{what}: {name} is missing")
        try:
            found[attribute] = kinds[attribute].judge(state[name])
        except StateError as error:
            raise StateError(f"{what}: {name} {error}") from None
    return found


def _shown(value: Any) -> str:
    return repr(value)[:40]
