"""A machine that stands still in a given state, for tests of what looks at one; no KVM behind it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from types import SimpleNamespace

from pyvmm.boot import segments, x86
from pyvmm.boot.x86 import GENERAL_REGISTERS, SEGMENT_REGISTERS, CpuState
from pyvmm.debug.report import CrashReport, build
from pyvmm.errors import KvmError
from pyvmm.kvm.exits import Exit, Shutdown
from pyvmm.memory import GuestMemory

RAM = 2 << 20
PIC_MEMBERS = (
    "last_irr", "irr", "imr", "isr", "priority_add", "irq_base", "read_reg_select", "poll", "special_mask",
    "init_state", "auto_eoi", "rotate_on_auto_eoi", "special_fully_nested_mode", "init4", "elcr",
)  # fmt: skip
CHANNEL_MEMBERS = (
    "latched_count", "count_latched", "status_latched", "status", "read_state", "write_state", "write_latch", "rw_mode",
    "bcd", "gate", "count_load_time",
)  # fmt: skip
TABLES, GDT, STACK, CODE = 0x1000, 0x500, 0x7C00, 0x100000


class FakeChips:
    """KVM's chips as they are made, the way a VmFd gives them out; those in `broken` ("irqchip", "pit2") fail."""

    def __init__(self) -> None:
        self.broken: dict[str, int] = {}
        pic = dict.fromkeys(PIC_MEMBERS, 0)
        self.pics = [SimpleNamespace(**pic), SimpleNamespace(**pic)]
        self.ioapic = SimpleNamespace(base_address=0xFEC00000, ioregsel=0, id=0, irr=0, redirtbl=[1 << 16] * 24)
        channel = dict.fromkeys(CHANNEL_MEMBERS, 0) | {"mode": 0xFF, "count": 0x10000}
        self.pit = SimpleNamespace(channels=[SimpleNamespace(**channel) for _ in range(3)], flags=0)

    def _check(self, what: str) -> None:
        if what in self.broken:
            raise KvmError(f"KVM_GET_{what.upper()}", self.broken[what])

    def get_irqchip(self, chip: int) -> SimpleNamespace:
        self._check("irqchip")
        return SimpleNamespace(chip=SimpleNamespace(pic=self.pics[chip % 2], ioapic=self.ioapic))

    def get_pit2(self) -> SimpleNamespace:
        self._check("pit2")
        return self.pit


class FakeVcpu:
    """Gives `state` out the way a VcpuFd does. Getters named in `broken` ("regs", "sregs", ...) raise KvmError.

    `cr2`, `mp_state` and `exception` (a vector and an error code, or None) are what a CpuState has no place for.
    """

    def __init__(self, state: CpuState, index: int = 0, broken: tuple[str, ...] = ()) -> None:
        self.state = state
        self.index = index
        self.broken = broken
        self.cr2 = 0
        self.mp_state = 0
        self.exception: tuple[int, int | None] | None = None
        self.msrs: dict[int, int] = {}
        self.apic_base = 0xFEE00900
        self.apic = bytearray(1024)
        self.vm = FakeChips()

    def _check(self, what: str) -> None:
        if what in self.broken:
            raise KvmError(f"KVM_GET_{what.upper()}", 5)

    def get_regs(self) -> SimpleNamespace:
        self._check("regs")
        return SimpleNamespace(**{name: getattr(self.state, name) for name in GENERAL_REGISTERS})

    def get_sregs(self) -> SimpleNamespace:
        self._check("sregs")
        state = self.state
        return SimpleNamespace(
            **{name: getattr(state, name) for name in (*SEGMENT_REGISTERS, "cr0", "cr3", "cr4", "efer")},
            gdt=SimpleNamespace(base=state.gdt_base, limit=state.gdt_limit),
            idt=SimpleNamespace(base=state.idt_base, limit=state.idt_limit),
            cr2=self.cr2,
            cr8=0,
            apic_base=self.apic_base,
        )

    def get_vcpu_events(self) -> SimpleNamespace:
        self._check("vcpu_events")
        vector, code = self.exception or (0, None)
        exception = SimpleNamespace(
            injected=self.exception is not None,
            pending=0,
            nr=vector,
            has_error_code=code is not None,
            error_code=code or 0,
        )
        return SimpleNamespace(exception=exception)

    def get_mp_state(self) -> int:
        self._check("mp_state")
        return self.mp_state

    def get_debugregs(self) -> SimpleNamespace:
        self._check("debugregs")
        return SimpleNamespace(db=[0x1000, 0, 0, 0], dr6=0xFFFF0FF0, dr7=0x400)

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """Those from the first one on that is not in `msrs` are left out, as KVM does."""
        self._check("msrs")
        return {index: self.msrs[index] for index in takewhile(self.msrs.__contains__, indices)}

    def get_fpu(self) -> SimpleNamespace:
        self._check("fpu")
        rows = [[row] * 16 for row in range(16)]
        return SimpleNamespace(fcw=0x37F, fsw=0, ftwx=0, fpr=rows, xmm=rows)

    def get_lapic(self) -> SimpleNamespace:
        self._check("lapic")
        return SimpleNamespace(regs=self.apic)

    def get_xsave(self) -> SimpleNamespace:
        self._check("xsave")
        return SimpleNamespace(region=[0] * 6 + [0x1F80])


def machine(code: bytes = b"\x90" * 16, mode: str = "long", at: int = CODE) -> tuple[FakeVcpu, GuestMemory]:
    """A vCPU in `mode` at `code`, which lies at gpa `at`, with what a loader gives it."""
    memory = GuestMemory.allocate([(0, RAM)])
    memory.write(TABLES, x86.identity_page_tables(TABLES))
    memory.write(GDT, segments.gdt([segments.long_code(), segments.flat_data()]))
    memory.write(at, code)
    state = {
        "long": lambda: x86.long_state(STACK, GDT, TABLES),
        "protected": lambda: x86.protected_state(STACK, GDT),
        "real": lambda: x86.real_state(0, STACK),
    }[mode]()
    state.rip = at
    return FakeVcpu(state), memory


def crash(vcpu: FakeVcpu, memory: GuestMemory, exit: Exit | None = None, before: tuple[Exit, ...] = ()) -> CrashReport:
    return build("crash", "triple fault", [vcpu], memory, [[*before, exit or Shutdown()]])


def stalled(
    vcpu: FakeVcpu, memory: GuestMemory, history: tuple[Exit, ...] = (), samples: tuple[int, ...] = ()
) -> CrashReport:
    return build("time-limit", "the time limit of 1 s was reached", [vcpu], memory, [history], [samples])


def likely(found: CrashReport) -> str:
    return "\n".join(reason.text for vcpu in found.vcpus for reason in vcpu.reasons)
