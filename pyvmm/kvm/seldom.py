"""What KVM_RUN seldom comes back for: with those of exits.py, one slotted class for every exit reason there is on x86.

Pure Python, imports exits. KVM API document (Documentation/virt/kvm/api.rst), section 5, "The kvm_run structure".
"""

from __future__ import annotations

from pyvmm.kvm.exits import (
    KVM_EXIT_AP_RESET_HOLD,
    KVM_EXIT_DEBUG,
    KVM_EXIT_DIRTY_RING_FULL,
    KVM_EXIT_EXCEPTION,
    KVM_EXIT_FAIL_ENTRY,
    KVM_EXIT_HLT,
    KVM_EXIT_HYPERCALL,
    KVM_EXIT_HYPERV,
    KVM_EXIT_IOAPIC_EOI,
    KVM_EXIT_IRQ_WINDOW_OPEN,
    KVM_EXIT_MEMORY_FAULT,
    KVM_EXIT_NMI,
    KVM_EXIT_NOTIFY,
    KVM_EXIT_SET_TPR,
    KVM_EXIT_SHUTDOWN,
    KVM_EXIT_SYSTEM_EVENT,
    KVM_EXIT_TPR_ACCESS,
    KVM_EXIT_UNKNOWN,
    KVM_EXIT_X86_BUS_LOCK,
    KVM_EXIT_X86_RDMSR,
    KVM_EXIT_X86_WRMSR,
    KVM_EXIT_XEN,
    KVM_NOTIFY_CONTEXT_INVALID,
    KVM_SYSTEM_EVENT_CRASH,
    KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SEV_TERM,
    KVM_SYSTEM_EVENT_SHUTDOWN,
    KVM_SYSTEM_EVENT_SUSPEND,
    KVM_SYSTEM_EVENT_WAKEUP,
    Exit,
    InternalError,
    Interrupted,
    Mmio,
    Pio,
    shown,
)

SYSTEM_EVENTS = {
    KVM_SYSTEM_EVENT_SHUTDOWN: "shutdown",
    KVM_SYSTEM_EVENT_RESET: "reset",
    KVM_SYSTEM_EVENT_CRASH: "crash",
    KVM_SYSTEM_EVENT_WAKEUP: "wakeup",
    KVM_SYSTEM_EVENT_SUSPEND: "suspend",
    KVM_SYSTEM_EVENT_SEV_TERM: "SEV termination",
}

VMX_ENTRY_FAILURE = 1 << 31
"""Set in FailEntry.hardware_reason where it is a VMX exit reason (Intel SDM 3D, appendix C); KVM hands those over."""


class Unknown(Exit):
    """A reason that pyvmm has no class for, or KVM_EXIT_UNKNOWN; `raw` holds the 256 bytes of the union in kvm_run.

    For KVM_EXIT_UNKNOWN they begin with the processor's own exit reason, 64 bits.
    """

    __slots__ = ("raw", "reason")
    name = "UNKNOWN"

    def __init__(self, reason: int, raw: bytes = b"") -> None:
        self.reason = reason
        self.raw = raw

    def describe(self) -> str:
        if self.reason == KVM_EXIT_UNKNOWN:
            return f"UNKNOWN hardware reason {int.from_bytes(self.raw[:8], 'little'):#x}"
        name = OF_OTHER_ARCHITECTURES.get(self.reason, "which pyvmm does not know")
        return f"exit reason {self.reason}, {name}: {self.raw[:32].hex(' ')}"


class ExceptionExit(Exit):
    """KVM_EXIT_EXCEPTION: an exception that KVM hands to user space; no x86 host does so today."""

    __slots__ = ("error_code", "exception")
    reason = KVM_EXIT_EXCEPTION
    name = "EXCEPTION"

    def __init__(self, exception: int, error_code: int) -> None:
        self.exception = exception
        self.error_code = error_code

    def describe(self) -> str:
        return f"EXCEPTION vector {self.exception} error code {self.error_code:#x}"


class Hypercall(Exit):
    """A hypercall for user space (KVM_CAP_EXIT_HYPERCALL). The answer is 8 bytes, the guest's RAX."""

    __slots__ = ("args", "longmode", "nr")
    reason = KVM_EXIT_HYPERCALL
    name = "HYPERCALL"

    def __init__(self, nr: int, args: tuple[int, ...], longmode: bool) -> None:
        self.nr = nr
        self.args = args
        self.longmode = longmode

    def describe(self) -> str:
        return f"HYPERCALL {self.nr} ({', '.join(map(hex, self.args))})"


class Debug(Exit):
    """A debug exception that KVM_SET_GUEST_DEBUG asked for: vector 1 or 3 at linear address `pc`, with DR6 and DR7."""

    __slots__ = ("dr6", "dr7", "exception", "pc")
    reason = KVM_EXIT_DEBUG
    name = "DEBUG"

    def __init__(self, exception: int, pc: int, dr6: int, dr7: int) -> None:
        self.exception = exception
        self.pc = pc
        self.dr6 = dr6
        self.dr7 = dr7

    def describe(self) -> str:
        return f"DEBUG exception {self.exception} at {self.pc:#x} dr6 {self.dr6:#x} dr7 {self.dr7:#x}"


class Hlt(Exit):
    """The guest halted, and there is no in-kernel APIC to wait for an interrupt."""

    __slots__ = ()
    reason = KVM_EXIT_HLT
    name = "HLT"


class IrqWindowOpen(Exit):
    """The guest can take an interrupt now, as request_interrupt_window asked."""

    __slots__ = ()
    reason = KVM_EXIT_IRQ_WINDOW_OPEN
    name = "IRQ_WINDOW_OPEN"


class Shutdown(Exit):
    """The processor shut down: a triple fault."""

    __slots__ = ()
    reason = KVM_EXIT_SHUTDOWN
    name = "SHUTDOWN"

    def describe(self) -> str:
        return "SHUTDOWN (triple fault)"


class FailEntry(Exit):
    """The processor refused the guest's state. `hardware_reason` is the VMX or SVM code, `cpu` the host's processor."""

    __slots__ = ("cpu", "hardware_reason")
    reason = KVM_EXIT_FAIL_ENTRY
    name = "FAIL_ENTRY"

    def __init__(self, hardware_reason: int, cpu: int) -> None:
        self.hardware_reason = hardware_reason
        self.cpu = cpu

    def describe(self) -> str:
        number = self.hardware_reason
        if number & VMX_ENTRY_FAILURE:
            return f"FAIL_ENTRY hardware reason {number:#x} (VM-entry failure, basic reason {number & 0xFFFF})"
        return f"FAIL_ENTRY hardware reason {number:#x}"


class SetTpr(Exit):
    """The guest changed its task priority (CR8), and there is no in-kernel APIC."""

    __slots__ = ()
    reason = KVM_EXIT_SET_TPR
    name = "SET_TPR"


class TprAccess(Exit):
    """The instruction at `rip` accessed the APIC's task priority (KVM_TPR_ACCESS_REPORTING)."""

    __slots__ = ("is_write", "rip")
    reason = KVM_EXIT_TPR_ACCESS
    name = "TPR_ACCESS"

    def __init__(self, rip: int, is_write: bool) -> None:
        self.rip = rip
        self.is_write = is_write

    def describe(self) -> str:
        return f"TPR_ACCESS {'write' if self.is_write else 'read'} at rip {self.rip:#x}"


class Nmi(Exit):
    """The host took an NMI while the guest ran."""

    __slots__ = ()
    reason = KVM_EXIT_NMI
    name = "NMI"


class SystemEvent(Exit):
    """The guest asked for shutdown, reset or the like by an interface that KVM serves; `data` up to 16 words."""

    __slots__ = ("data", "type")
    reason = KVM_EXIT_SYSTEM_EVENT
    name = "SYSTEM_EVENT"

    def __init__(self, type: int, data: tuple[int, ...] = ()) -> None:
        self.type = type
        self.data = data

    def describe(self) -> str:
        return f"SYSTEM_EVENT {SYSTEM_EVENTS.get(self.type, self.type)} {' '.join(map(hex, self.data))}".rstrip()


class IoapicEoi(Exit):
    """The guest ended a level-triggered interrupt whose IOAPIC is in user space (split irqchip)."""

    __slots__ = ("vector",)
    reason = KVM_EXIT_IOAPIC_EOI
    name = "IOAPIC_EOI"

    def __init__(self, vector: int) -> None:
        self.vector = vector

    def describe(self) -> str:
        return f"IOAPIC_EOI vector {self.vector:#x}"


class Hyperv(Exit):
    """A Hyper-V service that user space gives; `type` is KVM_EXIT_HYPERV_SYNIC, _HCALL or _SYNDBG.

    `values` are the fields of that type in order. The answer to _HCALL is 8 bytes, its result.
    """

    __slots__ = ("type", "values")
    reason = KVM_EXIT_HYPERV
    name = "HYPERV"

    def __init__(self, type: int, values: tuple[int, ...] = ()) -> None:
        self.type = type
        self.values = values

    def describe(self) -> str:
        return f"HYPERV type {self.type} ({', '.join(map(hex, self.values))})"


class Rdmsr(Exit):
    """The guest reads MSR `index`, which KVM leaves to user space. The answer is 8 bytes, or a refusal (#GP).

    `why` is one of KVM_MSR_EXIT_REASON_: a bad access, an unknown MSR, or the MSR filter.
    """

    __slots__ = ("data", "index", "why")
    reason = KVM_EXIT_X86_RDMSR
    name = "X86_RDMSR"

    def __init__(self, index: int, why: int, data: bytes = b"") -> None:
        self.index = index
        self.why = why
        self.data = data

    def describe(self) -> str:
        return f"X86_RDMSR {self.index:#x} -> {shown(self.data)}"


class Wrmsr(Exit):
    """The guest writes `value` to MSR `index`, which KVM leaves to user space; `why` as for Rdmsr."""

    __slots__ = ("index", "value", "why")
    reason = KVM_EXIT_X86_WRMSR
    name = "X86_WRMSR"

    def __init__(self, index: int, why: int, value: int) -> None:
        self.index = index
        self.why = why
        self.value = value

    def describe(self) -> str:
        return f"X86_WRMSR {self.index:#x} <- {self.value:#x}"


class DirtyRingFull(Exit):
    """The vCPU's ring of dirty pages must be emptied first."""

    __slots__ = ()
    reason = KVM_EXIT_DIRTY_RING_FULL
    name = "DIRTY_RING_FULL"


class ApResetHold(Exit):
    """An SEV-ES guest holds this processor in reset."""

    __slots__ = ()
    reason = KVM_EXIT_AP_RESET_HOLD
    name = "AP_RESET_HOLD"


class BusLock(Exit):
    """The guest locked the bus (KVM_CAP_X86_BUS_LOCK_EXIT)."""

    __slots__ = ()
    reason = KVM_EXIT_X86_BUS_LOCK
    name = "X86_BUS_LOCK"


class Xen(Exit):
    """A Xen hypercall for user space. The answer is 8 bytes, its result."""

    __slots__ = ("cpl", "input", "longmode", "params", "type")
    reason = KVM_EXIT_XEN
    name = "XEN"

    def __init__(self, type: int, longmode: bool, cpl: int, input: int, params: tuple[int, ...]) -> None:
        self.type = type
        self.longmode = longmode
        self.cpl = cpl
        self.input = input
        self.params = params

    def describe(self) -> str:
        return f"XEN hypercall {self.input} from ring {self.cpl} ({', '.join(map(hex, self.params))})"


class Notify(Exit):
    """The guest kept the processor from opening a window for events for too long (KVM_CAP_X86_NOTIFY_VMEXIT)."""

    __slots__ = ("flags",)
    reason = KVM_EXIT_NOTIFY
    name = "NOTIFY"

    def __init__(self, flags: int) -> None:
        self.flags = flags

    def describe(self) -> str:
        lost = ", the vCPU's state is lost" if self.flags & KVM_NOTIFY_CONTEXT_INVALID else ""
        return f"NOTIFY flags {self.flags:#x}{lost}"


class MemoryFault(Exit):
    """KVM could not resolve a guest access to `size` bytes at `gpa` (KVM_CAP_MEMORY_FAULT_INFO)."""

    __slots__ = ("flags", "gpa", "size")
    reason = KVM_EXIT_MEMORY_FAULT
    name = "MEMORY_FAULT"

    def __init__(self, flags: int, gpa: int, size: int) -> None:
        self.flags = flags
        self.gpa = gpa
        self.size = size

    def describe(self) -> str:
        return f"MEMORY_FAULT gpa {self.gpa:#x} size {self.size:#x} flags {self.flags:#x}"


EXITS: dict[int, type[Exit]] = {
    KVM_EXIT_UNKNOWN: Unknown,
    **{
        kind.reason: kind
        for kind in (
            ExceptionExit,
            Pio,
            Hypercall,
            Debug,
            Hlt,
            Mmio,
            IrqWindowOpen,
            Shutdown,
            FailEntry,
            Interrupted,
            SetTpr,
            TprAccess,
            Nmi,
            InternalError,
            SystemEvent,
            IoapicEoi,
            Hyperv,
            Rdmsr,
            Wrmsr,
            DirtyRingFull,
            ApResetHold,
            BusLock,
            Xen,
            Notify,
            MemoryFault,
        )
    },
}
"""The class for each exit reason that KVM has on x86."""

OF_OTHER_ARCHITECTURES = {
    13: "S390_SIEIC",
    14: "S390_RESET",
    15: "DCR",
    18: "OSI",
    19: "PAPR_HCALL",
    20: "S390_UCONTROL",
    21: "WATCHDOG",
    22: "S390_TSCH",
    23: "EPR",
    25: "S390_STSI",
    28: "ARM_NISV",
    35: "RISCV_SBI",
    36: "RISCV_CSR",
    38: "LOONGARCH_IOCSR",
}
"""Reasons that no x86 host gives; named for reports."""
