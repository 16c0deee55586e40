"""Reads a TOML file strictly: what is unknown, missing or of the wrong type is an error that names file and key.

Imports errors. Follows TOML 1.0 as tomllib reads it.
"""

from __future__ import annotations

from pyvmm.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


def read(text: str, place: str) -> Table:
    """The top table of `text`; `place` is what errors call the file. Raises ImageError where it is not TOML."""
    import tomllib

    try:
        return Table(tomllib.loads(text), place)
    except tomllib.TOMLDecodeError as error:
        raise ImageError(f"{place}: {error}") from error


class Table:
    """A TOML table from which every key is taken once, with its type; what is left over at the end is an error."""

    def __init__(self, table: dict[str, Any], place: str) -> None:
        self._table = dict(table)
        self._place = place

    def take(self, key: str, kind: Any, default: Any = None) -> Any:
        value = self._table.pop(key, default)
        if value is None:
            self.fail(f"{key} is missing")
        if not isinstance(value, kind) or isinstance(value, bool):
            self.fail(f"{key} is {value!r}")
        return value

    def take_strings(self, key: str, default: list[str] | None = None) -> tuple[str, ...]:
        values = self.take(key, list, default)
        if not all(isinstance(value, str) for value in values):
            self.fail(f"{key} is {values!r}, expected a list of strings")
        return tuple(values)

    def take_table(self, key: str) -> Table:
        return Table(self.take(key, dict), f"{self._place}: [{key}]")

    def has(self, key: str) -> bool:
        return key in self._table

    def end(self) -> None:
        for key in self._table:
            self.fail(f"{key} is not known")

    def fail(self, problem: str) -> NoReturn:
        raise ImageError(f"{self._place}: {problem}")
