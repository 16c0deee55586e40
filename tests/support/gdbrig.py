"""A gdb stub over scripted vCPUs: everything between a client's packets and KVM, without either."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from pyvmm.boot import segments, x86
from pyvmm.boot.x86 import GENERAL_REGISTERS, SEGMENT_REGISTERS, CpuState
from pyvmm.bus import Bus
from pyvmm.debug.gdb.loop import DebuggedLoop
from pyvmm.debug.gdb.monitor import Monitor
from pyvmm.debug.gdb.session import Session
from pyvmm.debug.gdb.target import Target
from pyvmm.errors import KvmError
from pyvmm.kvm.constants import KVM_GUESTDBG_BLOCKIRQ
from pyvmm.kvm.exits import Debug, Exit, InternalError, Interrupted
from pyvmm.kvm.host import INT1, DebugAbilities
from pyvmm.memory import GuestMemory
from pyvmm.runloop import Outcome
from pyvmm.steering import Control
from pyvmm.testing.scripted import ScriptedVcpu

RAM = 2 << 20
TABLES, GDT, STACK, CODE = 0x1000, 0x500, 0x7C00, 0x100000
LIMIT = 10
LIMITED = DebugAbilities((0,), (0,), (), (0,), trap=INT1, real_trap=INT1)
"""What kvm_pvm can do."""
USER = 1 << 2
"""In a page table's entry."""


class Fpu(SimpleNamespace):
    """struct kvm_fpu."""

    def __init__(self) -> None:
        words = dict.fromkeys(("fsw", "ftwx", "last_opcode", "last_ip", "last_dp"), 0)
        fpr, xmm = ([[0] * 16 for _ in range(count)] for count in (8, 16))
        super().__init__(fcw=0x37F, fpr=fpr, xmm=xmm, **words)


class DebuggedVcpu(ScriptedVcpu):
    """A scripted vCPU with registers and KVM_SET_GUEST_DEBUG. An item of the script may be a function that moves it."""

    def __init__(self, state: CpuState, index: int = 0) -> None:
        self.exits: list[Exit | Callable[[DebuggedVcpu], Exit]] = []
        super().__init__(self._items(), index)
        self.state = state
        self.fpu = Fpu()
        self.xsave = SimpleNamespace(region=[0] * 1024)
        self.mp_state = 0
        self.msrs = {0xC0000102: 0x1122}
        self.debugging: list[tuple[int, list[int]]] = []
        self.debugregs = SimpleNamespace(dr6=0)
        self.pending = 0
        self.injected: list[int] = []
        self.events: Any = None  # as they were set last
        self.broken: set[str] = set()
        self.vm = SimpleNamespace(check_extension=lambda number: KVM_GUESTDBG_BLOCKIRQ if number == 195 else 0)

    def _items(self) -> Iterable[Exit]:
        while True:
            while not self.exits:
                self._kicked.wait()
                yield Interrupted()
            item = self.exits.pop(0)
            yield item if isinstance(item, Exit) else item(self)

    def guest_debug(self, control: int, registers: Iterable[int] = ()) -> None:
        if "guest_debug" in self.broken:
            raise KvmError("KVM_SET_GUEST_DEBUG", 22)
        self.debugging.append((control, list(registers)))

    def get_regs(self) -> Any:
        return SimpleNamespace(**{name: getattr(self.state, name) for name in GENERAL_REGISTERS})

    def set_regs(self, regs: Any) -> None:
        for name in GENERAL_REGISTERS:
            setattr(self.state, name, getattr(regs, name))

    def get_sregs(self) -> Any:
        state = self.state
        names = (*SEGMENT_REGISTERS, "cr0", "cr3", "cr4", "efer")
        return SimpleNamespace(
            **{name: copy.copy(getattr(state, name)) for name in names},
            gdt=SimpleNamespace(base=state.gdt_base, limit=state.gdt_limit),
            idt=SimpleNamespace(base=state.idt_base, limit=state.idt_limit),
            cr2=0,
            cr8=0,
            apic_base=0xFEE00900,
        )

    def set_sregs(self, sregs: Any) -> None:
        for name in (*SEGMENT_REGISTERS, "cr0", "cr3", "cr4", "efer"):
            setattr(self.state, name, copy.copy(getattr(sregs, name)))

    def get_fpu(self) -> Any:
        if "fpu" in self.broken:
            raise KvmError("KVM_GET_FPU", 22)
        return copy.deepcopy(self.fpu)

    def set_fpu(self, fpu: Any) -> None:
        self.fpu = fpu

    def get_xsave(self) -> Any:
        return copy.deepcopy(self.xsave)

    def set_xsave(self, xsave: Any) -> None:
        self.xsave = xsave

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        if "msrs" in self.broken:
            raise KvmError("KVM_GET_MSRS", 22)
        return {index: self.msrs[index] for index in indices}

    def set_msrs(self, values: dict[int, int]) -> None:
        self.msrs |= values

    def get_mp_state(self) -> int:
        return self.mp_state

    def set_mp_state(self, state: int) -> None:
        self.mp_state = state

    def get_debugregs(self) -> Any:
        return copy.copy(self.debugregs)

    def set_debugregs(self, registers: Any) -> None:
        self.debugregs = registers

    def get_vcpu_events(self) -> Any:
        exception = SimpleNamespace(injected=0, pending=self.pending, nr=self.pending, has_error_code=1, error_code=5)
        return SimpleNamespace(exception=exception, flags=0x0F)

    def set_vcpu_events(self, events: Any) -> None:
        self.injected.append(events.exception.nr)
        self.events = events

    def kvmclock_ctrl(self) -> None:
        raise KvmError("KVM_KVMCLOCK_CTRL", 22)


def cpu(mode: str = "long") -> CpuState:
    """A processor in `mode` at CODE."""
    state = {
        "long": lambda: x86.long_state(STACK, GDT, TABLES),
        "protected": lambda: x86.protected_state(STACK, GDT),
        "real": lambda: x86.real_state(0x1000, STACK),
    }[mode]()
    state.rip = {"real": 0x20}.get(mode, CODE)
    return state


class Machine:
    """RAM, scripted vCPUs and what steers them; `threads` run them once started."""

    def __init__(self, cpus: int = 1, mode: str = "long") -> None:
        self.memory = GuestMemory.allocate([(0, RAM)])
        self.memory.write(TABLES, x86.identity_page_tables(TABLES))
        self.memory.write(GDT, segments.gdt([segments.long_code(), segments.flat_data()]))
        self.memory.write(CODE, bytes(range(64)))
        self.control = Control()
        self.quiet: list[bool] = []
        self.vcpus = [DebuggedVcpu(cpu(mode), index) for index in range(cpus)]
        self.loops: list[DebuggedLoop] = []
        self.threads: list[threading.Thread] = []

    def start(self, loop: Callable[..., DebuggedLoop]) -> None:
        """Run the vCPUs; `loop` makes their loops."""
        ports, mmio = Bus("port", 1 << 16), Bus("MMIO", 1 << 52)
        self.loops = [loop(vcpu, ports, mmio, self.control) for vcpu in self.vcpus]
        self.control.steer(self.vcpus)
        self.threads = [threading.Thread(target=one.run, daemon=True) for one in self.loops]
        for thread in self.threads:
            thread.start()

    def end(self) -> None:
        """End the run and give the memory back."""
        self.control.end(Outcome("stopped", 0))
        for thread in self.threads:
            thread.join(LIMIT)
            assert not thread.is_alive()
        self.memory.close()


class Rig(Machine):
    """Such a machine under a target, and a session; the client is the test."""

    def __init__(self, cpus: int = 1, mode: str = "long", can: DebugAbilities | None = None) -> None:
        super().__init__(cpus, mode)
        self.stopped = threading.Event()
        self.target = Target(can or DebugAbilities(), self.stopped.set, self.quiet.append)
        self.target.begin(self.control, self.vcpus, self.memory)
        self.start(lambda *arguments: DebuggedLoop(self.target, *arguments))
        self.target.halt()
        self.target.connect(True)
        for vcpu in self.vcpus:
            vcpu.debugging.clear()
        self.monitor = Monitor(SimpleNamespace(vcpus=self.vcpus))
        self.session = Session(self.target, self.monitor)

    def ask(self, packet: str | bytes) -> str:
        """The answer, of one packet."""
        (answer,) = self.session.answer(packet if isinstance(packet, bytes) else packet.encode("latin-1"))
        return answer.decode("latin-1")

    def run(self, packet: str, *exits: Any, vcpu: int = 0) -> list[str]:
        """Send what lets the guest go on, which then makes `exits`; what the stop is told by."""
        self.vcpus[vcpu].exits.extend(exits)
        self.stopped.clear()
        said = self.session.answer(packet.encode())
        return [text.decode("latin-1") for text in [*said, *self.wait()]]

    def wait(self) -> list[bytes]:
        deadline = time.monotonic() + LIMIT
        while True:
            assert self.stopped.wait(max(0.0, deadline - time.monotonic())), "it did not stop"
            self.stopped.clear()
            found = self.session.report()
            if found:
                return found


def at(address: int, exit: Exit) -> Callable[[DebuggedVcpu], Exit]:
    """The guest comes to `address`, and makes `exit`."""

    def go(vcpu: DebuggedVcpu) -> Exit:
        vcpu.state.rip = address
        return exit

    return go


def stepped(address: int) -> Callable[[DebuggedVcpu], Exit]:
    """A single step ends before `address`."""
    return at(address, Debug(1, address, 0x4000, 0x400))


def refused(address: int) -> Callable[[DebuggedVcpu], Exit]:
    """KVM's emulator does not want the instruction at `address`."""
    return at(address, InternalError(1, (), b"\xf1"))


def words(packets: Iterable[str]) -> str:
    """What output packets say."""
    return "".join(bytes.fromhex(text[1:]).decode() for text in packets if text.startswith("O") and text != "OK")
