"""A device's recorded accesses, done again with the device model that there is now: no KVM, on any machine.

    result = replay("block.jsonl")
    assert result.same, result

Imports reader, fields, models, outside, sound and memory. Everything that came to the device from elsewhere comes
from the recording; what it answers, tells its back-end, raises and writes to memory must be what it was. The first
difference ends it.
"""

from __future__ import annotations

from importlib import import_module

from pyvmm.errors import LoadError, UsageError
from pyvmm.memory import GuestMemory
from pyvmm.trace.devices import sound
from pyvmm.trace.devices.models import MODELS, make
from pyvmm.trace.devices.outside import Parted, Player, words
from pyvmm.trace.devices.recorded import DEVICE, changes
from pyvmm.trace.fields import text
from pyvmm.trace.reader import Trace, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from typing import Any

    Record = dict[str, Any]

SHOWN = 32
"""Bytes of memory that are shown where it differs."""


class Result:
    """How a replay went.

    accesses   how many were done, with the one that differs
    record     the access, or what the host did, at which the difference begins; None: there is none
    expected, got    what the recording has there, and what the model did
    """

    def __init__(self, device: str, accesses: int, record: Record | None, expected: str = "", got: str = "") -> None:
        self.device = device
        self.accesses = accesses
        self.record = record
        self.expected = expected
        self.got = got

    @property
    def same(self) -> bool:
        """Whether there is no difference."""
        return self.record is None

    def __str__(self) -> str:
        if self.record is None:
            return f"{self.device}: {self.accesses} accesses, no difference"
        lines = [f"{self.device}: differs at access {self.accesses}, {describe(self.record)}"]
        return "\n".join([*lines, f"  recorded: {self.expected}", f"  now:      {self.got}"])


def describe(record: Record) -> str:
    """An access or a host's call in words."""
    if record["kind"] != "exit":
        return f"where the host calls {words(record)}"
    verb = "a write" if record["write"] else "a read"
    data = f" of 0x{bytes.fromhex(record['data'])[::-1].hex()}" if record["write"] else ""
    means = f" ({text(record, 'words')})" if "words" in record else ""
    return f"{verb}{data} at {text(record, 'device')} {record['at']:#x}, {record['size']} bytes{means}"


def replay(
    source: str | os.PathLike[str] | Trace, device: str = "", *, load: Callable[[str], Any] = import_module
) -> Result:
    """Play the recording, a trace file or one that was read, to the model.

    Of a whole run's trace `device` names the one to play. `load` gives modules by name: a test may have another
    version of one. Raises LoadError, UsageError for what cannot be played.
    """
    trace = source if isinstance(source, Trace) else read(source)
    recording = trace.header.get("recording")
    if recording is None:
        from pyvmm.trace.devices.runs import replay_run

        return replay_run(trace, device, load=load)
    sound.header(trace)
    if recording["model"] not in MODELS:
        raise UsageError(f"{trace.path}: there is no device model {recording['model']!r}")
    return _Play(trace, recording, load).run()


class _Play:
    """One replay of a recording."""

    def __init__(self, trace: Trace, recording: Record, load: Callable[[str], Any]) -> None:
        self._model = recording["model"]
        self._options = recording["options"]
        self._load = load
        self._trace = trace
        self._records: Iterator[Record] = trace.records()
        self._ahead: list[Record] = []
        length = trace.header["mem"]
        self._memory = GuestMemory.allocate([(0, length)] if length else [])
        self._image = bytes(length)
        self._accesses = 0
        self._at: Record = {"kind": "outside", "in": "call", "name": "the device to be made", "args": []}

    def _peek(self) -> Record | None:
        if not self._ahead:
            found = next(self._records, None)
            if found is None:
                return None
            if found["kind"] != "outside":
                sound.record(self._trace, found)
            self._ahead.append({key: value for key, value in found.items() if key != "t"})
        return self._ahead[0]

    def _take(self) -> Record | None:
        found = self._peek()
        self._ahead.clear()
        return found

    def run(self) -> Result:
        rig = None
        try:
            player = Player(self._peek, self._take)
            rig = make(self._model, player, self._options, self._memory, self._load)
            player.targets(rig.targets)
            self._compare_memory()
            while (record := self._take()) is not None:
                self._step(record, rig.devices, player)
        except Parted as parted:
            return Result(self._model, self._accesses, self._at, parted.expected, parted.got)
        except LoadError:
            raise
        except Exception as error:  # out of the model: of that a recording has none
            return Result(self._model, self._accesses, self._at, "no exception", f"{type(error).__name__}: {error}")
        finally:
            if rig is not None:
                rig.close()
            rig = player = None  # type: ignore[assignment]
            try:
                self._memory.close()
            except BufferError:
                pass  # a device that differs may hold some of it
        return Result(self._model, self._accesses, None)

    def _step(self, record: Record, devices: dict[str, Any], player: Player) -> None:
        if record["kind"] == "memory":
            self._memory.write(record["at"], bytes.fromhex(record["data"]))
            self._show(record)
            return
        self._at = record
        if record["kind"] == "exit":
            self._accesses += 1
            self._access(record, devices[record["device"]])
        elif record.get("in") == "call":
            player.perform(record)
        else:
            raise Parted(words(record), "nothing of the kind")
        self._compare_memory()

    def _access(self, record: Record, device: Any) -> None:
        size, data = record["size"], bytes.fromhex(record["data"])
        with device.lock:
            if record["write"]:
                device.write(record["at"], size, int.from_bytes(data, "little"))
                return
            answer = device.read(record["at"], size)
        expected = int.from_bytes(data, "little")
        if answer != expected:
            raise Parted(f"{expected:#x}", f"{answer:#x}" if isinstance(answer, int) else repr(answer))

    def _show(self, record: Record) -> None:
        """Memory is to be as `record` says."""
        data, at = bytes.fromhex(record["data"]), record["at"]
        self._image = self._image[:at] + data + self._image[at + len(data) :]

    def _compare_memory(self) -> None:
        """What the device has changed must be what it changed then."""
        while (ahead := self._peek()) is not None and ahead["kind"] == "memory" and ahead["by"] == DEVICE:
            self._take()
            self._show(ahead)
        now = self._memory.read(0, len(self._image)) if self._image else b""
        for at, data in changes(self._image, now):
            expected = self._image[at : at + len(data)]
            place = f"{len(data)} bytes of memory at {at:#x}"
            raise Parted(f"{expected[:SHOWN].hex(' ')} in {place}", data[:SHOWN].hex(" "))
        following = self._peek()
        if following is not None and following["kind"] == "outside" and "out" in following:
            raise Parted(words(following), "nothing more")
