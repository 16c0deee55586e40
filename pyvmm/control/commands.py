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
    import _socket
    from collections.abc import Callable
    from typing import Any, Protocol

    from pyvmm.control.server import ControlServer
    from pyvmm.virtio.balloon import VirtioBalloon
    from pyvmm.vm import VM

    class Session(Protocol):
        """What a connection becomes: served on its thread until the client hangs up."""

        def run(self, early: bytes) -> None: ...

        def finish(self, timeout: float) -> None: ...


LOG_PIECE = 24 << 10
"""Bytes of the console's log in one answer, whose line they have to fit."""
STATISTICS_WAIT = 1.0
"""Seconds that a guest has to tell of its memory; then what it told the last time has to do."""


class Handover:
    """An answer that is the last line on its connection: what follows there is `session(client)`'s.

    `refuse` undoes it where the client has gone meanwhile.
    """

    __slots__ = ("answer", "refuse", "session")

    def __init__(
        self,
        answer: dict[str, Any],
        session: Callable[[_socket.socket], Session],
        refuse: Callable[[], None] | None = None,
    ) -> None:
        self.answer = answer
        self.session = session
        self.refuse = refuse


class Command:
    """`run(server, **arguments)` does it and returns the answer, which JSON can express; `arguments` are the types of
    those that a client may give. What a client must give has no default in `run`, and is in `required`.
    """

    __slots__ = ("arguments", "required", "run")

    def __init__(
        self,
        run: Callable[..., dict[str, Any] | Handover],
        arguments: dict[str, type] | None = None,
        required: tuple[str, ...] = (),
    ) -> None:
        self.run = run
        self.arguments = arguments or {}
        self.required = required


def perform(server: ControlServer, line: bytes) -> dict[str, Any] | Handover:
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
    """Which VM this is, and what becomes of it. Sizes in bytes."""
    vm, config = server.vm, server.vm.config
    return {
        "name": server.name,
        "pid": os.getpid(),
        "state": vm.state,
        "seconds": round(vm.stats.seconds, 3),
        "kernel": config.kernel,
        "initrd": config.initrd,
        "append": config.append,
        "cpus": config.cpus,
        "mem": config.mem,
        "devices": [slot.name for slot in vm.slots],
    }


def look(
    server: ControlServer, words: list[str], vcpu: int = 0, physical: bool = False, data: bool = False
) -> Handover:
    """What `words` ask for of `pyvmm.debug.views`, as text, or with `data` as JSON, to the end of the connection.

    The guest stands still for the look alone, whether it runs, is paused or in a debugger's hands.
    """
    from pyvmm.control.told import Told
    from pyvmm.debug import views

    vm = _alive(server)
    if not all(type(word) is str for word in words):
        raise UsageError("look: words is no list of strings")
    vm.symbol(0)  # reading a kernel's symbols takes its time: not while the guest waits
    with vm.still():
        if data:
            text = json.dumps(views.look_data(vm, words, vcpu=vcpu, physical=physical), indent=2)
        else:
            text = "\n".join(views.look(vm, words, vcpu=vcpu, physical=physical))
    found = text.encode() + b"\n"
    return Handover({}, lambda client: Told(found, client))


def stat(server: ControlServer) -> dict[str, Any]:
    """What the VM has done and what its process uses: seconds, and bytes of memory, the guest's among them."""
    import resource

    stats, used = server.vm.stats, resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm", encoding="ascii") as statm:
        resident = int(statm.read().split()[1]) * resource.getpagesize()
    return {
        "exits": stats.exits,
        "completed": stats.completed,
        "unclaimed": stats.unclaimed,
        "seconds": round(stats.seconds, 3),
        "cpu": round(used.ru_utime + used.ru_stime, 3),
        "memory": resident,
        "mem": server.vm.config.mem,
    }


def pause(server: ControlServer) -> dict[str, Any]:
    """Let the VM stand still."""
    _alive(server).pause()
    return {}


def resume(server: ControlServer) -> dict[str, Any]:
    """Let it run on."""
    _alive(server).resume()
    return {}


def power_button(server: ControlServer) -> dict[str, Any]:
    """Press it; says whether the guest listens."""
    vm = _alive(server)
    if vm.state == "paused":
        raise UsageError(f"{server.name} is paused: a paused guest cannot shut down (pyvmm resume comes first)")
    listening = vm.machine.pm.listening
    if listening:
        vm.machine.press_power_button()
    return {"listening": listening}


def kill(server: ControlServer) -> dict[str, Any]:
    """End the run."""
    from pyvmm.errors import STATUS_KILLED
    from pyvmm.runloop import Outcome

    server.vm.stop(Outcome("killed", STATUS_KILLED, "killed by way of the control socket"))
    return {}


def logs(server: ControlServer, position: int = 0) -> dict[str, Any]:
    """A piece of the end of the console's output: at `position` from where the log begins, in base64, "" at its end."""
    import base64

    log = server.vm.console_log
    return {"data": base64.b64encode(log[max(position, 0) :][:LOG_PIECE]).decode(), "size": len(log)}


def attach(server: ControlServer) -> Handover:
    """Make the connection the console's, both ways."""
    from pyvmm.control.attached import Attached

    vm = _alive(server)
    return Handover({}, lambda client: Attached(vm, client))


def execute(
    server: ControlServer,
    args: list[str],
    env: dict[str, str] | None = None,
    cwd: str = "",
    user: str = "",
    terminal: bool = False,
    rows: int = 0,
    columns: int = 0,
) -> Handover:
    """Start a command in the guest, and make the connection its streams, as `executed` says."""
    from pyvmm.control.executed import Executed, begin

    vm = _alive(server)
    if not vm.config.agent:
        raise UsageError(f"{server.name} has no ports for an agent (pyvmm run --agent gives it these)")
    if vm.state == "paused":
        raise UsageError(f"{server.name} is paused: no command runs there (pyvmm resume comes first)")
    process = begin(vm.guest, args, env or {}, user, cwd, (rows, columns) if terminal else None)
    return Handover({"pid": process.pid}, lambda client: Executed(process, client), process.close)


def _alive(server: ControlServer) -> VM:
    if server.vm.state not in ("running", "paused"):
        raise UsageError(f"{server.name} does not run: it is {server.vm.state}")
    return server.vm


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


def snapshot(server: ControlServer, path: str, base: str = "") -> dict[str, Any]:
    """Save the VM to the folder `path`, or what has changed since `base`: absolute paths, for the server has a working
    folder of its own.
    """
    for name in (path, base or path):
        if not os.path.isabs(name):
            raise UsageError(f"snapshot: {name!r} (expected an absolute path)")
    server.vm.snapshot(path, base or None)
    return {}


COMMANDS = {
    "inspect": Command(inspect),
    "look": Command(look, {"words": list, "vcpu": int, "physical": bool, "data": bool}, ("words",)),
    "stat": Command(stat),
    "pause": Command(pause),
    "resume": Command(resume),
    "power-button": Command(power_button),
    "kill": Command(kill),
    "logs": Command(logs, {"position": int}),
    "attach": Command(attach),
    "exec": Command(
        execute,
        {"args": list, "env": dict, "cwd": str, "user": str, "terminal": bool, "rows": int, "columns": int},
        ("args",),
    ),
    "balloon": Command(balloon, {"size": int}),
    "net-link": Command(net_link, {"up": bool, "device": str}, ("up",)),
    "snapshot": Command(snapshot, {"path": str, "base": str}, ("path",)),
    "disk-resize": Command(disk_resize, {"device": str, "size": int, "shrink": bool}, ("device",)),
}
