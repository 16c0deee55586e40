"""Tells a run in words while it goes: each exit with its instruction (`pyvmm run --explain`).

Imports decode, explain, debug, paging and errors. An observer that must be told at once, so every access comes to
Python: a guest is slow while it is explained.

Where the instruction is that led to an exit depends on KVM: a read is finished when the vCPU goes on, so RIP is on it;
a write that went through KVM's emulator is done, and RIP is behind it; one that did not has RIP on it.
"""

from __future__ import annotations

from threading import Lock

from pyvmm.debug.disasm import disassemble
from pyvmm.debug.state import VcpuState, capture
from pyvmm.errors import MissingExtraError
from pyvmm.kvm.exits import InternalError, Mmio, Pio
from pyvmm.observe import Observer
from pyvmm.trace.decode import Decoder, entry
from pyvmm.trace.explain import SILENT, Folded, Wanted, Words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any

    from pyvmm.bus import Bus, BusDevice
    from pyvmm.debug.disasm import Instruction
    from pyvmm.kvm.exits import Exit
    from pyvmm.memory import GuestMemory
    from pyvmm.vm import VM

    Record = dict[str, Any]

LONGEST = 15
"""Bytes of an instruction (SDM volume 2A, 2.3.11)."""
BEFORE = 48
"""Bytes before RIP from which on an instruction that ends there is looked for; decoding finds into step within them."""
MOST_INSTRUCTIONS = 4096
"""Places whose instruction is remembered."""
UNREADABLE = "(an instruction that cannot be read)"


class Narrator(Observer):
    """Tells `say(line)` of the exits of one VM, of the devices in `names` or of all (see `explain.Wanted`).

    `vm` is set before it starts. What cannot be told, as an instruction that is not in RAM, is left out and said so.
    """

    at_once = True

    def __init__(self, say: Callable[[str], None], names: Collection[str] = ()) -> None:
        self.vm: VM | None = None
        self._say = say
        self._folded = Folded(say)
        self._lock = Lock()
        self._decoder: Decoder | None = None
        self._wanted = Wanted(names)
        self._words = Words()
        self._known: dict[tuple[int, int, str, tuple[bytes, bytes]], tuple[int, str]] = {}
        self._disassembles = True

    # --- The run ---------------------------------------------------------------------------------------------------

    def on_lifecycle(self, state: str) -> None:
        """The machine is there before the first of these."""
        with self._lock:
            if self._decoder is None and self.vm is not None:
                self._begin(self.vm)
            self._folded.add(f"the run: {state}")
            if state == "ended":
                self._folded.flush()

    def _begin(self, vm: VM) -> None:
        self._decoder = Decoder.of(vm.machine)
        self._words = Words(vm.symbol)
        for space, bus in (("pio", vm.machine.ports), ("mmio", vm.machine.mmio)):
            self._follow(space, bus)
        try:
            disassemble(b"\x90", 0, 64)
        except MissingExtraError as error:
            self._disassembles = False
            self._say(f"without instructions: {error}")

    def _follow(self, space: str, bus: Bus) -> None:
        """Devices that come and go, as those on PCI do, are known then."""
        before = bus.changed

        def changed(base: int, length: int, device: BusDevice | None) -> None:
            if before is not None:
                before(base, length, device)
            assert self._decoder is not None
            with self._lock:
                if device is None:
                    self._decoder.remove(space, base)
                else:
                    self._decoder.place((entry(space, base, length, device),))

        bus.changed = changed

    def on_exit(self, vcpu: int, exit: Exit) -> None:
        """Called by the run loop, the exit has been dealt with."""
        if exit.name in SILENT or self._decoder is None:
            return
        record = _record(vcpu, exit)
        with self._lock:
            self._decoder.explain(record)
            if not self._wanted(record):
                return
            assert self.vm is not None
            state = capture(self.vm.vcpus[vcpu])
            instruction = ""
            if state.whole:
                record["rip"], instruction = self._instruction(state, self.vm.memory, record, exit)
            self._folded.add(self._words.line(record, instruction))

    # --- The instruction -------------------------------------------------------------------------------------------

    def _instruction(self, state: VcpuState, memory: GuestMemory, record: Record, exit: Exit) -> tuple[int, str]:
        """Where the instruction is that led to the exit, and what it is, quoted; "" where nobody can tell."""
        at, bits = state.linear_rip, state.code_bits
        if not self._disassembles:
            return at, ""
        if isinstance(exit, InternalError) and exit.insn_bytes:
            return at, _quoted(disassemble(exit.insn_bytes, at, bits, 1))
        before = b"" if not _ends_before_rip(record) else _readable_before(state, memory, at)
        code = before, state.paging.read(memory, at, LONGEST)
        key = at, bits, record["reason"], code
        found = self._known.get(key)
        if found is None:
            found = _find(code, at, bits, record)
            if len(self._known) < MOST_INSTRUCTIONS:
                self._known[key] = found
        return found


def _ends_before_rip(record: Record) -> bool:
    """Whether the instruction may have been done, so that it ends at RIP."""
    return record["reason"] == "HLT" or record.get("write") is True


def _readable_before(state: VcpuState, memory: GuestMemory, at: int) -> bytes:
    """Up to BEFORE bytes that end at `at`, fewer where the page before is not there."""
    for length in (BEFORE, at & 0xFFF):
        if 0 < length <= min(BEFORE, at):
            code = state.paging.read(memory, at - length, length)
            if len(code) == length:
                return code
    return b""


def _find(code: tuple[bytes, bytes], at: int, bits: int, record: Record) -> tuple[int, str]:
    here = disassemble(code[1], at, bits, 1)
    last = _ending(code[0], at, bits, record)
    if last is not None and not (here and _does(here[0], record)):
        return last.address, _quoted([last])
    return at, _quoted(here)


def _quoted(found: list[Instruction]) -> str:
    return f"`{found[0].text}`" if found else UNREADABLE


def _ending(code: bytes, at: int, bits: int, record: Record) -> Instruction | None:
    """The instruction of the right kind that ends at `at`, where `code` does: of several, the one that most ways of
    decoding come to.
    """
    found: dict[int, list[Instruction]] = {}
    for skip in range(min(LONGEST + 1, len(code))):
        for one in disassemble(code[skip:], at - len(code) + skip, bits, BEFORE):
            if one.address + len(one.code) == at and _does(one, record):
                found.setdefault(one.address, []).append(one)
    return max(found.values(), key=len)[0] if found else None


def _does(instruction: Instruction, record: Record) -> bool:
    """Whether an instruction is of the kind that leads to such an exit."""
    if record["reason"] == "IO":
        return instruction.mnemonic.removeprefix("rep ").startswith("out")
    if record["reason"] == "HLT":
        return instruction.mnemonic == "hlt"
    target, _, _ = instruction.operands.partition(",")
    return "[" in target and not instruction.mnemonic.startswith(("cmp", "test", "jmp", "call", "push"))


def _record(vcpu: int, exit: Exit) -> Record:
    """The exit as a trace has it."""
    record: Record = {"kind": "exit", "vcpu": vcpu, "reason": exit.name}
    if isinstance(exit, Pio):
        access = {"space": "pio", "at": exit.port, "size": exit.size, "count": exit.count}
    elif isinstance(exit, Mmio):
        access = {"space": "mmio", "at": exit.gpa, "size": exit.size, "count": 1}
    else:
        return record | {"details": exit.describe().removeprefix(exit.name).strip(" :")}
    return record | access | {"write": exit.is_write, "data": exit.data.hex()}
