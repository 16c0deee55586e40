"""`vm.toml`: a VM's configuration as a file.

Imports config, hardware and errors; tomllib, which costs 13 ms, when a file is read. Every key is a field of `VmConfig`
by its name, but for what comes in tables: `[[disk]]`, `[[net]]`, `[[port]]`, `[[share]]`, `[rng]`, `[vsock]`,
`[balloon]`. What is wrong is told with file and line. tomllib gives no lines, so `lines_of` finds the keys once more in
a text that is known to be TOML (TOML 1.0.0), in which that takes little.
"""

from __future__ import annotations

import os

from pyvmm.config import VmConfig, parse_size
from pyvmm.errors import UsageError
from pyvmm.hardware import Balloon, Disk, Net, Port, Rng, Share, Vsock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    Key = tuple[str | int, ...]
    """Where a value stands: keys, and places in arrays of tables, counted from 0."""
    Convert = Callable[["Reader", Key, Any], Any]

PATHLIKE = ("unix:", "file:")


class Reader:
    """One file, read once: `tables` is what it says, `lines` the line of each of its keys."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises UsageError for a file that cannot be read or is not TOML."""
        import tomllib

        self.path = os.fspath(path)
        self.folder = os.path.dirname(self.path)
        try:
            with open(self.path, "rb") as file:
                text = file.read().decode()
            self.tables: dict[str, Any] = tomllib.loads(text)
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.path}: no TOML: not UTF-8 at byte {error.start}") from None
        except RecursionError:
            raise UsageError(f"{self.path}: no TOML that can be meant: nested too deeply") from None
        except ValueError as error:
            raise UsageError(f"{self.path}: no TOML: {error}") from None
        self.lines = lines_of(text)

    def wrong(self, key: Key, text: str) -> NoReturn:
        """Raise UsageError about what stands at `key`."""
        name = ".".join(str(part) for part in key if not isinstance(part, int))
        while key not in self.lines and key:
            key = key[:-1]
        line = f":{self.lines[key]}" if key else ""
        raise UsageError(f"{self.path}{line}: {name}: {text}" if name else f"{self.path}{line}: {text}")

    def settings(self) -> dict[str, Any]:
        """What the file says, as VmConfig's arguments. Raises UsageError."""
        found: dict[str, Any] = {}
        for name, value in self.tables.items():
            if name in FIELDS:
                found[name] = FIELDS[name](self, (name,), value)
            elif name in SEVERAL:
                argument, kind = SEVERAL[name]
                if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
                    self.wrong((name,), f"expected tables: [[{name}]]")
                found[argument] = [self._object(kind, (name, at), one) for at, one in enumerate(value)]
            elif name in SINGLE:
                if not isinstance(value, dict):
                    self.wrong((name,), f"expected a table: [{name}]")
                found[name] = self._object(SINGLE[name], (name,), value)
            else:
                known = ", ".join(sorted((*FIELDS, *SEVERAL, *SINGLE)))
                self.wrong((name,), f"unknown key (expected {known})")
        self._judge(found)
        return found

    def _judge(self, found: dict[str, Any]) -> None:
        """Name the line at which this stops being a VM's configuration."""
        names = {argument: name for name, (argument, _) in SEVERAL.items()}
        so_far: dict[str, Any] = {"kernel": "kernel"}
        # Tables last: what is judged together with a field, as the balloon with the memory, is one.
        for argument, value in sorted(found.items(), key=lambda item: item[0] not in FIELDS):
            so_far[argument] = value
            try:
                VmConfig(**so_far)
            except (UsageError, OverflowError) as error:
                self.wrong((names.get(argument, argument),), str(error))

    def _object(self, kind: Kind, key: Key, table: dict[str, Any]) -> Any:
        found: dict[str, Any] = {}
        for name, value in table.items():
            if name not in kind.fields:
                self.wrong((*key, name), f"unknown key (expected {', '.join(kind.fields)})")
            found[name] = kind.fields[name](self, (*key, name), value)
        for name in kind.needed:
            if name not in found:
                self.wrong(key, f"{name} is missing")
        if kind.make is Net and found["kind"] == "socket" and "target" in found:
            found["target"] = self.beside(found["target"])
        # First what it cannot be without, then one more at a time: the one that makes it wrong is named.
        names = sorted(found, key=lambda name: name not in kind.first)
        made = None
        for count in range(max(1, sum(name in kind.first for name in names)), len(names) + 1):
            try:
                made = kind.make(**{name: found[name] for name in names[:count]})
            except UsageError as error:
                self.wrong((*key, names[count - 1]), str(error))
        return kind.make() if made is None else made

    def beside(self, path: str) -> str:
        """`path` as it is meant in the file: from the file's own folder on."""
        return os.path.join(self.folder, path)


class Kind:
    """What a table becomes: `make` of `fields`; without `needed` there is none, `first` are judged together."""

    __slots__ = ("fields", "first", "make", "needed")

    def __init__(
        self, make: Callable[..., Any], needed: tuple[str, ...], also_first: tuple[str, ...] = (), **fields: Convert
    ) -> None:
        self.make = make
        self.needed = needed
        self.first = needed + also_first
        self.fields = fields


def _typed(kind: type, called: str) -> Convert:
    def convert(reader: Reader, key: Key, value: Any) -> Any:
        if type(value) is not kind:
            reader.wrong(key, f"{_shown(value)} (expected {called})")
        return value

    return convert


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "a table" if isinstance(value, dict) else f"{value!r:.40}"


TEXT = _typed(str, "a text")
NUMBER = _typed(int, "a number")
YES = _typed(bool, "true or false")


def _path(reader: Reader, key: Key, value: Any) -> str:
    return reader.beside(TEXT(reader, key, value))


def _size(reader: Reader, key: Key, value: Any) -> int:
    text = str(_typed(str, 'a size, as "512M"')(reader, key, value))
    try:
        return parse_size(text)
    except UsageError as error:
        reader.wrong(key, str(error))


def _rate(reader: Reader, key: Key, value: Any) -> int:
    return value if type(value) is int else _size(reader, key, value)


def _time(reader: Reader, key: Key, value: Any) -> float | str:
    if type(value) not in (int, float, str):
        reader.wrong(key, f'{_shown(value)} (expected a time, as "30s")')
    return value  # type: ignore[no-any-return]  # judged with the rest


def _seconds(reader: Reader, key: Key, value: Any) -> float:
    if type(value) not in (int, float):
        reader.wrong(key, f"{_shown(value)} (expected seconds)")
    return float(value)


def _texts(reader: Reader, key: Key, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        reader.wrong(key, f"{_shown(value)} (expected texts in brackets)")
    return value


def _append(reader: Reader, key: Key, value: Any) -> str:
    return " ".join(_texts(reader, key, value)) if isinstance(value, list) else str(TEXT(reader, key, value))


def _where(reader: Reader, key: Key, value: Any) -> str:
    text = str(TEXT(reader, key, value))
    for kind in PATHLIKE:
        if text.startswith(kind):
            return kind + reader.beside(text.removeprefix(kind))
    return text


def _mac(reader: Reader, key: Key, value: Any) -> bytes:
    text = str(TEXT(reader, key, value))
    parts = text.split(":")
    if len(parts) != 6 or not all(len(part) == 2 and part.isascii() and part.isalnum() for part in parts):
        reader.wrong(key, f'{text!r} (expected a MAC address, as "52:54:00:12:34:56")')
    try:
        return bytes.fromhex("".join(parts))
    except ValueError:
        reader.wrong(key, f'{text!r} (expected a MAC address, as "52:54:00:12:34:56")')


FIELDS: dict[str, Convert] = {
    "kernel": _path,
    "kernel_format": TEXT,
    "flat_mode": TEXT,
    "load_addr": NUMBER,
    "kernel_entry": TEXT,
    "host_quirks": YES,
    "initrd": _path,
    "append": _append,
    "mem": _size,
    "cpus": NUMBER,
    "cpu": TEXT,
    "timeout": _time,
    "stuck": _time,
    "stuck_at_boot": _seconds,
    "on_panic": TEXT,
    "fail_on": _texts,
    "symbols": _path,
    "memory_backing": TEXT,
    "transport": TEXT,
    "name": TEXT,
    "agent": YES,
    "faults": _texts,
    "fault_seed": NUMBER,
    "datapath": TEXT,
    "exits": TEXT,
    "lint": YES,
    "switch_interval": _seconds,
}
"""Of VmConfig, by name."""
SEVERAL: dict[str, tuple[str, Kind]] = {
    "disk": (
        "disks",
        Kind(
            Disk,
            ("path",),
            path=_path,
            readonly=YES,
            overlay=YES,
            format=TEXT,
            cache=TEXT,
            queues=NUMBER,
            serial=TEXT,
            datapath=TEXT,
        ),
    ),
    "net": (
        "net",
        Kind(
            Net,
            ("kind",),
            ("target",),
            kind=TEXT,
            target=TEXT,
            mac=_mac,
            mtu=NUMBER,
            forwards=_texts,
            pcap=_path,
            spoof=YES,
            datapath=TEXT,
        ),
    ),
    "port": ("ports", Kind(Port, ("name",), name=TEXT, where=_where)),
    "share": ("shares", Kind(Share, ("path", "tag"), path=_path, tag=TEXT, readonly=YES)),
}
SINGLE: dict[str, Kind] = {
    "rng": Kind(Rng, (), rate=_rate),
    "vsock": Kind(Vsock, ("path",), path=_path, cid=NUMBER),
    "balloon": Kind(Balloon, (), size=_size),
}


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in the file `path`, checked, as arguments for `VmConfig`. Raises UsageError with file and line."""
    return Reader(path).settings()


def lines_of(text: str) -> dict[Key, int]:
    """The line, from 1, of every key in a `text` that is TOML, and of every table."""
    return _Scan(text).lines


class _Scan:
    """Goes through a TOML text once, from key to key."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Key, int] = {}
        self._text = text
        self._at = 0
        self._line = 1
        self._tables: dict[Key, int] = {}  # how many of each array of tables there are so far
        table: Key = ()
        while self._skip(" \t\r\n"):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _skip(self, blanks: str) -> bool:
        """Go on to what is neither blank nor comment; False at the end."""
        text = self._text
        while self._at < len(text) and (text[self._at] in blanks or text[self._at] == "#"):
            if text[self._at] == "#":
                end = text.find("\n", self._at)
                self._at = len(text) if end < 0 else end
            else:
                self._line += text[self._at] == "\n"
                self._at += 1
        return self._at < len(text)

    def _header(self) -> Key:
        line, array = self._line, self._text.startswith("[[", self._at)
        self._at += 1 + array
        key: Key = ()
        names = self._key()
        for name in names[:-1]:
            key += (name,)
            if key in self._tables:
                key += (self._tables[key] - 1,)
        key += (names[-1],)
        if array:
            number = self._tables[key] = self._tables.get(key, 0) + 1
            self.lines.setdefault(key, line)
            key += (number - 1,)
        self.lines.setdefault(key, line)
        self._at += 1 + array
        return key

    def _pair(self, table: Key) -> None:
        line = self._line
        key = table
        for name in self._key():
            key += (name,)
            self.lines.setdefault(key, line)
        self._at += 1  # the equals sign
        self._skip(" \t")
        self._value(key)

    def _key(self) -> list[str]:
        """A dotted key; stops before what follows it."""
        names = []
        while True:
            self._skip(" \t")
            if self._text[self._at] in "\"'":
                start = self._at
                self._string()
                names.append(_unquoted(self._text[start : self._at]))
            else:
                start = self._at
                while self._text[self._at] not in " \t.=]":
                    self._at += 1
                names.append(self._text[start : self._at])
            self._skip(" \t")
            if self._text[self._at] != ".":
                return names
            self._at += 1

    def _string(self) -> None:
        text, quote = self._text, self._text[self._at]
        long = text.startswith(quote * 3, self._at)
        end = quote * 3 if long else quote
        self._at += len(end)
        while not text.startswith(end, self._at):
            step = 2 if text[self._at] == "\\" and quote == '"' else 1
            self._line += text.count("\n", self._at, self._at + step)
            self._at += step
        self._at += len(end)
        while long and text.startswith(quote, self._at):  # up to two more belong to the text
            self._at += 1

    def _value(self, key: Key) -> None:
        text = self._text
        first = text[self._at]
        if first in "\"'":
            self._string()
        elif first in "[{":
            end, blanks = ("]", " \t\r\n,") if first == "[" else ("}", " \t,")
            self._at += 1
            number = 0
            while self._skip(blanks) and text[self._at] != end:
                if first == "{":
                    self._pair(key)
                else:
                    self.lines.setdefault((*key, number), self._line)
                    self._value((*key, number))
                    number += 1
            self._at += 1
        else:
            while self._at < len(text) and text[self._at] not in ",]}\r\n#":
                self._at += 1


def _unquoted(text: str) -> str:
    import tomllib

    return next(iter(tomllib.loads(f"{text} = 0")))
