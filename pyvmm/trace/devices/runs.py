"""A platform device's part of a whole run, done again with the device model that there is now.

Imports replay's Result, models, sound and errors. A run's trace has the device's accesses as vCPUs made them, and what
passed between it and who it is connected to: what it said and what it asked, each in its order. Writes that were posted
have their effect a bit later than they are in the trace. So what the device says must be what it said then, in that
order; and at an access that a device model dealt with all must have been said that was said before it.
"""

from __future__ import annotations

from collections import deque
from importlib import import_module

from pyvmm.errors import UsageError
from pyvmm.trace.devices import sound
from pyvmm.trace.devices.models import make
from pyvmm.trace.devices.outside import Parted
from pyvmm.trace.devices.replay import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from pyvmm.trace.reader import Trace

    Record = dict[str, Any]

PLATFORM = {
    "serial": "serial",
    "rtc": "rtc",
    "acpi-pm": "acpi-pm",
    "i8042": "i8042",
    "port92": "port92",
    "resetcontrol": "resetcontrol",
    "pvpanic": "pvpanic",
    "debugexit": "debugexit",
    "debugcon": "debugcon",
    "firmware-debugcon": "debugcon",
}
"""The model of each device that can be played from a run's trace, by the device's name."""
HOST = ("receive", "press_power_button")
"""What the host does with a device; all else passes from the device."""
MOST_ORDERS = 64
"""How many orders are tried where two things happened at the same time."""
NEAR = 64
"""Steps before a difference that may be the cause of it."""
FAR = 1000
"""Accesses that a vCPU may make between what another thread did and its note of it."""


def played(trace: Trace) -> list[str]:
    """The devices of a run that were used and can be played, in the order of their first access."""
    found: dict[str, None] = {}
    for record in trace.records():
        device = record.get("device")
        if record["kind"] == "exit" and isinstance(device, str) and device in PLATFORM:
            found[device] = None
    return list(found)


def replay_run(trace: Trace, device: str, *, load: Callable[[str], Any] = import_module) -> Result:
    """Play what `device` did. Raises UsageError for a device that cannot be played, LoadError."""
    if device not in PLATFORM:
        raise UsageError(
            f"{device}: its accesses alone say too little, or there is no such device (expected one of "
            f"{', '.join(PLATFORM)}; pyvmm.trace.devices.recorded records others)"
        )
    sound.header(trace)
    if trace.header.get("restored"):
        raise UsageError(f"{trace.path}: the VM was restored, and devices did not begin with this trace")
    steps: list[Record] = []
    said: list[Record] = []
    for record in trace.records():
        if record.get("device") != device or record["kind"] not in ("exit", "outside", "interrupt"):
            if record["kind"] == "lost":
                sound.record(trace, record)
                raise UsageError(f"{trace.path}: {record['count']} records were lost: what followed cannot be told")
            continue
        sound.record(trace, record)
        does = record["kind"] == "exit" or record.get("name") in HOST
        (steps if does else said).append(record)
    play = _Play(trace, device, steps, said, load)
    result = play.run()
    orders = _orders(steps, play.at)
    for _ in range(MOST_ORDERS):
        other = None if result.same else next(orders, None)
        if other is None:
            break
        trial = _Play(trace, device, other, said, load)
        got = trial.run()
        if got.same or got.accesses > result.accesses:
            result, orders = got, _orders(other, trial.at)
    return result


def _orders(steps: list[Record], failed: int) -> Iterator[list[Record]]:
    """Other orders of `steps` that the times allow, and that could explain a difference at number `failed`."""
    for at in range(failed, max(failed - NEAR, -1), -1):
        later = _at_once(steps, at)
        if later:
            yield [*steps[:at], steps[later], *steps[at:later], *steps[later + 1 :]]


def _at_once(steps: list[Record], at: int) -> int:
    """The next step that is not of the same vCPU, if it may have happened before exit `at`; else 0.

    The trace has when an exit came, when something else had been done, and how long each took.
    """
    one = steps[at]
    if one["kind"] != "exit":
        return 0
    for later in range(at + 1, min(at + FAR, len(steps))):
        other = steps[later]
        if other["kind"] != "exit" or other["vcpu"] != one["vcpu"]:
            began = other["t"] - (0 if other["kind"] == "exit" else other.get("handle", 0))
            return later if began <= one["t"] + one.get("handle", 0) else 0
    return 0


class _Play:
    """One replay. `at` is the number of the step that it has come to."""

    def __init__(
        self, trace: Trace, device: str, steps: list[Record], said: list[Record], load: Callable[[str], Any]
    ) -> None:
        self.at = 0
        self._device = device
        self._steps = steps
        self._clock: deque[float] = deque(one["value"] for one in said if one.get("name") == "clock")
        self._lines = deque(one for one in said if one["kind"] == "interrupt")
        self._calls = deque(one for one in said if one.get("name") not in ("clock", "output", None))
        output = [(one["t"], bytes.fromhex(one["data"])) for one in said if one.get("name") == "output"]
        self._text = b"".join(data for _, data in output)
        self._awaited = deque((t, len(data)) for t, data in output)  # what is not yet due
        self._owed = 0  # bytes of `_text` that are
        self._written = 0
        self._last = 0.0
        self._rig = make(PLATFORM[device], self, {"mem": trace.header["mem"], "waits": True}, None, load)
        self._model = next(iter(self._rig.devices.values()))
        entries = (one for one in trace.header["devices"] if one["name"] == device)
        self._bases = {one["base"]: one.get("offset", 0) for one in entries}

    def object(self, name: str) -> Any:
        """What the model is connected to."""
        return {"output": self._say, "irq": self._level, "clock": self._time}.get(name) or self._called(name)

    def _say(self, data: bytes) -> None:
        expected = self._text[self._written : self._written + len(data)]
        if expected != data:
            raise Parted(f"output {expected!r}", f"{bytes(data)!r}")
        self._written += len(data)

    def _level(self, asserted: bool) -> None:
        if not self._lines or self._lines[0]["level"] != int(asserted):
            recorded = f"interrupt line {self._lines[0]['level']}" if self._lines else "no change of the interrupt line"
            raise Parted(recorded, f"interrupt line {int(asserted)}")
        self._lines.popleft()

    def _time(self) -> float:
        if self._clock:
            self._last = self._clock.popleft()
        return self._last

    def _called(self, name: str) -> Callable[..., None]:
        def called(*arguments: Any) -> None:
            if name == "drained":
                return
            expected = self._calls.popleft() if self._calls else None
            if expected is None or (expected["name"], expected.get("value", 0)) != (name, *(arguments or (0,))):
                raise Parted("no call" if expected is None else expected["name"], f"{name}{arguments}")

        return called

    def run(self) -> Result:
        accesses = 0
        before: Record = {"kind": "outside", "in": "call", "name": "the device to be made", "args": []}
        try:
            for number, step in enumerate(self._steps):
                self.at = number
                if step["kind"] == "exit":
                    if step["by"] == "python":
                        self._due(step["t"])
                    accesses += 1
                    before = step
                    self._access(step)
                else:
                    before = {**step, "in": "call", "args": []}
                    self._host(step)
            self._due(None)
        except Parted as parted:
            return Result(self._device, accesses, before, parted.expected, parted.got)
        except Exception as error:
            return Result(self._device, accesses, before, "no exception", f"{type(error).__name__}: {error}")
        return Result(self._device, accesses, None)

    def _due(self, t: int | None) -> None:
        """All must have been said that was said before `t`."""
        while self._awaited and (t is None or self._awaited[0][0] < t):
            self._owed += self._awaited.popleft()[1]
        if self._written < self._owed:
            raise Parted(f"output {self._text[self._written : self._owed][:80]!r}", "nothing yet")
        for queue, what in ((self._lines, "a change of the interrupt line"), (self._calls, "a call")):
            if queue and (t is None or queue[0]["t"] < t):
                raise Parted(what, "nothing yet")

    def _access(self, step: Record) -> None:
        size, data = step["size"], bytes.fromhex(step["data"])
        base = max(base for base in self._bases if base <= step["at"])
        offset = step["at"] - base + self._bases[base]
        model = self._model
        with model.lock:
            for at in range(0, len(data), size):
                value = int.from_bytes(data[at : at + size], "little")
                if step["write"]:
                    model.write(offset, size, value)
                elif (answer := model.read(offset, size)) != value:
                    raise Parted(f"{value:#x}", f"{answer:#x}" if isinstance(answer, int) else repr(answer))

    def _host(self, step: Record) -> None:
        arguments = (bytes.fromhex(step["data"]),) if "data" in step else ()
        result = self._rig.targets[step["name"]](*arguments)
        if "value" in step and result != step["value"]:
            raise Parted(f"the result {step['value']}", repr(result))
