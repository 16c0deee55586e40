"""What can be asked of a running VM over its control socket.

Imports errors and vm's methods. A command is a function and the names and types of its arguments; a new one is a line
in COMMANDS.
"""

from __future__ import annotations

import json
import os

from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyvmm.control.server import ControlServer
    from pyvmm.virtio.balloon import VirtioBalloon

STATISTICS_WAIT = 1.0
"""Seconds that a guest has to tell of its memory; then what it told the last time has to do."""


class Command:
    """`run(server, **arguments)` does it and returns the answer, which JSON can express; `arguments` are the types of
    those that a client may give. What a client must give has no default in `run`, and is in `required`.
    """

    __slots__ = ("arguments", "required", "run")

    def __init__(
        self,
        run: Callable[..., dict[str, Any]],
        arguments: dict[str, type] | None = None,
        required: tuple[str, ...] = (),
    ) -> None:
        self.run = run
        self.arguments = arguments or {}
        self.required = required


def perform(server: ControlServer, line: bytes) -> dict[str, Any]:
    """Do what a client's `line` asks for. Raises UsageError for what is no request, and what the command raises."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not a line of JSON: {error}") from None
    if not isinstance(request, dict) or not isinstance(request.get("command"), str):
        raise UsageError('not a request (expected an object with "command")')
    name = request.pop("command")
    command = COMMANDS.get(name)
    if command is None:
        raise UsageError(f"unknown command {name!r} (expected {', '.join(COMMANDS)})")
    for key, value in request.items():
        wanted = command.arguments.get(key)
        if wanted is None:
            raise UsageError(f"{name}: unknown argument {key!r} (expected {', '.join(command.arguments) or 'none'})")
        if type(value) is not wanted:
            raise UsageError(f"{name}: {key} is {json.dumps(value)[:40]} (expected {wanted.__name__})")
    for key in command.required:
        if key not in request:
            raise UsageError(f"{name}: {key} is missing")
    return command.run(server, **request)


def inspect(server: ControlServer) -> dict[str, Any]:
    """Which VM this is, and what becomes of it."""
    vm = server.vm
    return {"name": server.name, "pid": os.getpid(), "state": vm.state, "kernel": vm.config.kernel}


def balloon(server: ControlServer, size: int | None = None) -> dict[str, Any]:
    """Set the balloon's target, in bytes, or see how it is."""
    found = _balloon(server)
    if size is not None:
        found.set_target(size)
    else:
        found.request_statistics(STATISTICS_WAIT)
    return {"target": found.target, "actual": found.actual, "statistics": dict(found.statistics)}


def _balloon(server: ControlServer) -> VirtioBalloon:
    found = server.vm.balloon
    if found is None:
        raise UsageError(f"{server.name} has no balloon (pyvmm run --balloon gives it one)")
    return found


def net_link(server: ControlServer, up: bool, device: str = "net0") -> dict[str, Any]:
    """Plug a network's cable in, or pull it."""
    server.vm.net_link(up, device)
    return {}


def disk_resize(server: ControlServer, device: str, size: int | None = None, shrink: bool = False) -> dict[str, Any]:
    """Make a disk `size` bytes long, or as long as its image has become."""
    return {"size": server.vm.resize_disk(size, device, shrink=shrink)}


COMMANDS = {
    "inspect": Command(inspect),
    "balloon": Command(balloon, {"size": int}),
    "net-link": Command(net_link, {"up": bool, "device": str}, ("up",)),
    "disk-resize": Command(disk_resize, {"device": str, "size": int, "shrink": bool}, ("device",)),
}
