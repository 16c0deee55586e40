"""What the options that attach devices say, read into `pyvmm.hardware`'s classes.

May import hardware, options and config, and what judges a port forward or a rule of faults. Imported only where such an
option is given.
"""

from __future__ import annotations

from pyvmm.cli.options import split_commas
from pyvmm.config import LONGEST_NUMBER, parse_size
from pyvmm.errors import UsageError
from pyvmm.hardware import Balloon, Disk, Net, Port, Rng, Share, Vsock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Table = Mapping[str, Callable[[str], Any] | None]

FLAG = None
"""In a table of sub-options: one that takes no value."""


def parse_disk(text: str) -> Disk:
    """PATH[,ro][,overlay][,format=raw][,cache=...][,queues=N][,serial=S][,datapath=...]. Raises UsageError."""
    table: Table = {
        **dict.fromkeys(("ro", "overlay"), FLAG),
        **dict.fromkeys(("format", "cache", "serial", "datapath"), str),
        "queues": _number,
    }
    path, found = _path_first(text, table)
    if "ro" in found:
        found["readonly"] = found.pop("ro")
    return Disk(path, **found)


def parse_net(text: str) -> Net | None:
    """user|tap[=NAME]|socket=PATH|none and sub-options; None for "none". Raises UsageError."""
    first, *parts = split_commas(text)
    kind, _, target = first.partition("=")
    if kind == "none" and first == "none" and not parts:
        return None
    if kind == "user" and target:
        raise UsageError(f"{first!r}: a user network has no name")
    table: Table = {"mac": _mac, "mtu": _number, "hostfwd": _forward, "pcap": str, "no-spoof": FLAG, "datapath": str}
    forwards = []
    rest = []
    for part in parts:
        if part.startswith("hostfwd="):
            forwards.append(_forward(part.removeprefix("hostfwd=")))
        else:
            rest.append(part)
    found = _sub_options(rest, table)
    if found.pop("no-spoof", False):
        found["spoof"] = False
    return Net(kind, target, forwards=forwards, **found)


def parse_publish(text: str) -> str:
    """[ADDR:]HOST:GUEST[/udp], checked. Raises UsageError."""
    from pyvmm.backends.net.forward import parse_publish

    parse_publish(text)
    return text


def parse_port(text: str) -> Port:
    """NAME=WHERE. Raises UsageError."""
    name, equals, where = text.partition("=")
    if not equals or not where:
        raise UsageError(f"{text!r} (expected NAME=WHERE, as in log=file:guest.log)")
    return Port(name, where)


def parse_rng(text: str) -> Rng:
    """Bytes a second, with K, M or G. Raises UsageError."""
    return Rng(_number(text) if text.isdigit() else parse_size(text))


def parse_share(text: str) -> Share:
    """DIR,tag=T[,ro]. Raises UsageError."""
    path, found = _path_first(text, {"tag": str, "ro": FLAG})
    if "tag" not in found:
        raise UsageError(f"{text!r} (expected DIR,tag=NAME: by what name the guest mounts it)")
    return Share(path, found["tag"], readonly="ro" in found)


def parse_vsock(text: str) -> Vsock:
    """PATH[,cid=N]. Raises UsageError."""
    path, found = _path_first(text, {"cid": _number})
    return Vsock(path, **found)


def parse_balloon(text: str) -> Balloon:
    """How much it holds at first. Raises UsageError."""
    return Balloon(parse_size(text))


def parse_fault(text: str) -> str:
    """A rule of `pyvmm.virtio.faults`, checked. Raises UsageError."""
    from pyvmm.virtio.faults import parse_rule

    parse_rule(text)
    return text


def networks(nets: list[Net | None], published: list[str]) -> list[Net]:
    """The networks that `--net` and `--publish` ask for together. Raises UsageError."""
    found = [net for net in nets if net is not None]
    if None in nets and (len(nets) > 1 or published):
        raise UsageError("--net none goes with no other network and no --publish")
    if published:
        users = [net for net in found if net.kind == "user"]
        if found and not users:
            raise UsageError(f"--publish goes with --net user, not with {found[0].kind} alone")
        if not users:
            users = [Net.user()]
            found += users
        users[0].forwards += tuple(published)
    return found


def _mac(text: str) -> bytes:
    from pyvmm.backends.net import parse_mac

    return parse_mac(text)


def _forward(text: str) -> str:
    from pyvmm.backends.net.forward import parse_forward

    parse_forward(text)
    return text


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < LONGEST_NUMBER):
        raise UsageError(f"{text!r} is not a number")
    return int(text)


def _path_first(text: str, table: Table) -> tuple[str, dict[str, Any]]:
    """A path and the sub-options behind it. Raises UsageError, too, if the path seems to have been forgotten."""
    path, *parts = split_commas(text)
    name, equals, _ = path.partition("=")
    if equals and name in table:
        raise UsageError(f"{text!r} (expected a path before {name}=; ./{path} if that is one)")
    return path, _sub_options(parts, table)


def _sub_options(parts: list[str], table: Table) -> dict[str, Any]:
    """The values of `parts`, each NAME or NAME=VALUE, as `table` converts them. Raises UsageError."""
    found: dict[str, Any] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if name not in table:
            raise UsageError(f"unknown sub-option {name!r} (expected {', '.join(table)}; a comma in a path is doubled)")
        if name in found:
            raise UsageError(f"sub-option {name!r} is given twice")
        convert = table[name]
        if convert is None and equals:
            raise UsageError(f"sub-option {name!r} takes no value")
        if convert is not None and not value:
            raise UsageError(f"sub-option {name!r} needs a value: {name}=...")
        found[name] = True if convert is None else convert(value)
    return found
