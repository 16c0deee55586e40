"""One debugger's connection: its packets, and what they do to the target.

Imports its neighbours, runloop and errors. Follows the manual of gdb, appendix "GDB Remote Serial Protocol", in
all-stop mode. Threads are vCPUs, counted from 1. A session does no I/O: `answer`, `interrupt` and `report` return what
is to be sent. What means nothing here is answered by an empty packet, which is how the protocol says so.
"""

from __future__ import annotations

from pyvmm.debug.gdb.access import Access
from pyvmm.debug.gdb.description import Description
from pyvmm.debug.gdb.monitor import Monitor
from pyvmm.debug.gdb.packets import CHUNK, PACKET_SIZE
from pyvmm.debug.gdb.registers import Refused
from pyvmm.debug.gdb.target import Action
from pyvmm.errors import STATUS_KILLED, PyvmmError
from pyvmm.runloop import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyvmm.debug.gdb.target import Stop, Target

SIGINT, SIGABRT, SIGTRAP = 2, 6, 5
"""gdb's own numbers of signals (include/gdb/signals.def), which these share with Linux."""
FEATURES = (
    f"PacketSize={PACKET_SIZE:x};QStartNoAckMode+;qXfer:features:read+;vContSupported+;swbreak+;hwbreak+;multiprocess-"
)
_REASONS = {"break": "swbreak:;", "hardware": "hwbreak:;"}


class Session(Access):
    """Packets of one connection to `target`."""

    def __init__(self, target: Target, monitor: Monitor) -> None:
        super().__init__(target)
        self.no_ack = False
        self.running = False
        self.leaving = False
        """Whether the connection is to end once what was answered is sent."""
        self._monitor = monitor
        self._last = self._reply(SIGTRAP, 0)
        self._said_bits = 0
        self.description = Description(monitor.bits(self._bits(0)))

    # --- Packets -----------------------------------------------------------------------------------------------------

    def answer(self, packet: bytes) -> list[bytes]:
        """What to send for `packet`; nothing while the answer is a stop that is still to come."""
        try:
            text = packet.decode("latin-1")
            for prefix, handler in _HANDLERS:
                if text.startswith(prefix):
                    found = handler(self, text[len(prefix) :])
                    return found if isinstance(found, list) else [found]
        except (Refused, PyvmmError) as error:
            return [_error(str(error))]
        except (ValueError, IndexError, OverflowError):
            return [b"E01"]  # malformed
        return [b""]

    def interrupt(self) -> list[bytes]:
        """Ctrl-C."""
        if not self.running:
            return []
        self.target.halt()
        return self.report(interrupted=True)

    def report(self, *, interrupted: bool = False) -> list[bytes]:
        """The target has come to a stop, or has ended: what the debugger is told, if it waits to be told."""
        target = self.target
        if target.over is not None:
            return self.ended(target.over)
        if not self.running or target.control.outcome is not None:
            return []
        if not interrupted:
            target.settle()
        found = target.take_stop()
        if found is None and not interrupted:
            return []
        self.running = False
        if found is None:
            self._last = self._reply(SIGINT, self.stopped)
            return [*self._notes(self.stopped), self._last]
        index, stop = found
        self._last = self._describe(index, stop)
        return [*self._notes(index, stop.text), self._last]

    def ended(self, outcome: Outcome) -> list[bytes]:
        """The run is over."""
        self.leaving = True
        if not self.running:
            return []
        self.running = False
        if outcome.reason == "signal":
            return [b"X%02x" % (outcome.status & 0x7F)]
        return [b"W%02x" % (outcome.status & 0xFF)]

    # --- Stops -------------------------------------------------------------------------------------------------------

    def _describe(self, index: int, stop: Stop) -> bytes:
        signal = {"crash": SIGABRT, "refused": SIGINT, "interrupt": SIGINT}.get(stop.kind, SIGTRAP)
        reason = _REASONS.get(stop.kind, "")
        if stop.kind in ("write", "access"):
            reason = f"{'watch' if stop.kind == 'write' else 'awatch'}:{stop.address:x};"
        return self._reply(signal, index, reason)

    def _reply(self, signal: int, index: int, reason: str = "") -> bytes:
        self.thread = self.stopped = index
        return f"T{signal:02x}thread:{index + 1:x};{reason}".encode()

    def _bits(self, index: int) -> int:
        state = self.target.state(index)
        return state.code_bits if state.whole else 64

    def _notes(self, index: int, text: str = "") -> list[bytes]:
        """What the user should know at this stop."""
        notes = [text] if text else []
        notes += self.target.points.notes
        self.target.points.notes = []
        bits = self._bits(index)
        if bits > self.description.bits and bits != self._said_bits:
            self._said_bits = bits
            notes.append(
                f"vCPU {index} runs {bits}-bit code, and this connection shows {self.description.bits}-bit registers: "
                "`disconnect`, then `target remote` again"
            )
        return [packet for note in notes for packet in _output(f"pyvmm: {note}\n")]

    def _question(self, _: str) -> bytes:
        return self._last

    # --- Running -----------------------------------------------------------------------------------------------------

    def _vcont(self, text: str) -> list[bytes]:
        wanted: dict[int, Action | None] = {}
        for part in text.split(";")[1:]:
            what, colon, thread = part.partition(":")
            action = _action(what)
            # The first one that fits a thread counts.
            for index in self._indices(thread if colon else "-1"):
                wanted.setdefault(index, action)
        return self._resume({index: action for index, action in wanted.items() if action is not None})

    def _resume(self, actions: dict[int, Action]) -> list[bytes]:
        if not actions:
            return [b"E01"]
        stepping = [index for index, action in actions.items() if action.step]
        if stepping:
            self.stopped = stepping[0]
        self.target.resume(actions)
        self._monitor.vcpu = None
        self.running = True
        notes, self.target.points.notes = self.target.points.notes, []
        return [packet for note in notes for packet in _output(f"pyvmm: {note}\n")]

    def _continue(self, text: str) -> list[bytes]:
        self._jump(text)
        return self._resume({index: Action() for index in range(len(self.target.vcpus))})

    def _step(self, text: str) -> list[bytes]:
        self._jump(text)
        return self._resume({self.thread: Action(step=True)})

    def _continue_signal(self, text: str) -> list[bytes]:
        return self._continue(text.partition(";")[2])

    def _step_signal(self, text: str) -> list[bytes]:
        return self._step(text.partition(";")[2])

    def _jump(self, text: str) -> None:
        if text:
            pc = next(register for register in self.description.registers if register.source == "pc")
            self.write(pc, int(text, 16).to_bytes(pc.bits // 8, "little"))

    def _detach(self, _: str) -> bytes:
        self.target.run_free()
        self.leaving = True
        return b"OK"

    def _kill(self, _: str) -> list[bytes]:
        self.leaving = True
        self.target.control.end(Outcome("killed", STATUS_KILLED, "killed by the debugger"))
        return []

    def _vkill(self, text: str) -> list[bytes]:
        return [*self._kill(text), b"OK"]

    # --- Threads -----------------------------------------------------------------------------------------------------

    def _indices(self, thread: str) -> list[int]:
        """The vCPUs that a thread id means: "-1" all, "0" any. Raises ValueError for none."""
        number = -1 if thread == "-1" else int(thread, 16)
        if number == -1:
            return list(range(len(self.target.vcpus)))
        index = number - 1 if number else self.thread
        if not 0 <= index < len(self.target.vcpus):
            raise ValueError(thread)
        return [index]

    def _choose(self, text: str) -> bytes:
        indices = self._indices(text[1:])
        if text[:1] == "g" and text[1:] != "-1":
            self.thread = indices[0]
        return b"OK"

    def _alive(self, text: str) -> bytes:
        self._indices(text)
        return b"OK"

    def _threads(self, _: str) -> bytes:
        return b"m" + ",".join(f"{index + 1:x}" for index in range(len(self.target.vcpus))).encode()

    def _thread_name(self, text: str) -> bytes:
        index = self._indices(text)[0]
        state = self.target.state(index)
        return f"vCPU {index}: {state.describe_mode() if state.whole else 'cannot be read'}".encode().hex().encode()

    def _current(self, more: str) -> bytes:
        return b"" if more else b"QC%x" % (self.thread + 1)  # qCRC, for one, begins alike

    # --- Queries -----------------------------------------------------------------------------------------------------

    def _supported(self, _: str) -> bytes:
        return FEATURES.encode()

    def _start_no_ack(self, _: str) -> bytes:
        self.no_ack = True
        return b"OK"

    def _features(self, text: str) -> bytes:
        annex, _, place = text.partition(":")
        offset, _, length = place.partition(",")
        if annex != "target.xml":
            return b"E00"
        xml, start = self.description.xml, int(offset, 16)
        part = xml[start : start + min(int(length, 16), CHUNK)]
        return (b"m" if start + len(part) < len(xml) else b"l") + part

    def _command(self, text: str) -> list[bytes]:
        lines = self._monitor.run(bytes.fromhex(text).decode("utf-8", "replace"), self.stopped, self.memory)
        return [*_output("\n".join(lines) + "\n"), b"OK"]


def _fixed(reply: bytes) -> Callable[[Session, str], bytes]:
    return lambda session, text: reply


_HANDLERS: tuple[tuple[str, Callable[[Any, str], bytes | list[bytes]]], ...] = (
    ("?", Session._question),
    ("g", Session.read_all),
    ("G", Session.write_all),
    ("p", Session.read_one),
    ("P", Session.write_one),
    ("m", Session.read_memory),
    ("M", Session.write_memory),
    ("X", Session.write_binary),
    ("Z", Session.insert),
    ("z", Session.remove),
    ("H", Session._choose),
    ("T", Session._alive),
    ("vCont?", _fixed(b"vCont;c;C;s;S;r")),
    ("vCont", Session._vcont),
    ("vKill", Session._vkill),
    ("c", Session._continue),
    ("C", Session._continue_signal),
    ("s", Session._step),
    ("S", Session._step_signal),
    ("D", Session._detach),
    ("k", Session._kill),
    ("qSupported", Session._supported),
    ("QStartNoAckMode", Session._start_no_ack),
    ("qXfer:features:read:", Session._features),
    ("qfThreadInfo", Session._threads),
    ("qsThreadInfo", _fixed(b"l")),
    ("qThreadExtraInfo,", Session._thread_name),
    ("qC", Session._current),
    ("qAttached", _fixed(b"1")),
    ("qRcmd,", Session._command),
)
"""By how a packet begins; the first that fits counts."""


def _action(what: str) -> Action:
    """What a vCont action means. A VM takes no signals, so those with one are as those without. Raises ValueError."""
    if what[:1] in ("c", "C"):
        return Action()
    if what[:1] in ("s", "S"):
        return Action(step=True)
    if what[:1] == "r":
        first, _, end = what[1:].partition(",")
        return Action(step=True, within=(int(first, 16), int(end, 16)))
    raise ValueError(what)


def _output(text: str) -> list[bytes]:
    data = text.encode()
    return [b"O" + data[at : at + CHUNK].hex().encode() for at in range(0, len(data), CHUNK)]


def _error(text: str) -> bytes:
    """A refusal in words. What comes behind the second full stop is what gdb shows."""
    return f"E.pyvmm.{text}".encode()[: PACKET_SIZE - 16]
