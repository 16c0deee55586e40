"""What KVM_RUN came back for: the exits of a guest's everyday life. The others are in seldom.py.

Pure Python, imports nothing compiled: the run loop and the scripted vCPU know KVM by these classes alone. A class or
table of seldom.py is found here by its name, too, and imported then. Follows the KVM API document
(Documentation/virt/kvm/api.rst), section 5, "The kvm_run structure". The build holds the reason numbers against
<linux/kvm.h>.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.kvm.seldom import *  # noqa: F403
else:

    def __getattr__(name):
        if name.startswith("__"):
            raise AttributeError(name)
        from pyvmm.kvm import seldom

        return getattr(seldom, name)


KVM_EXIT_UNKNOWN = 0
KVM_EXIT_EXCEPTION = 1
KVM_EXIT_IO = 2
KVM_EXIT_HYPERCALL = 3
KVM_EXIT_DEBUG = 4
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_IRQ_WINDOW_OPEN = 7
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_SET_TPR = 11
KVM_EXIT_TPR_ACCESS = 12
KVM_EXIT_NMI = 16
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_IOAPIC_EOI = 26
KVM_EXIT_HYPERV = 27
KVM_EXIT_X86_RDMSR = 29
KVM_EXIT_X86_WRMSR = 30
KVM_EXIT_DIRTY_RING_FULL = 31
KVM_EXIT_AP_RESET_HOLD = 32
KVM_EXIT_X86_BUS_LOCK = 33
KVM_EXIT_XEN = 34
KVM_EXIT_NOTIFY = 37
KVM_EXIT_MEMORY_FAULT = 39

KVM_EXIT_IO_IN = 0
KVM_EXIT_IO_OUT = 1

KVM_EXIT_HYPERV_SYNIC = 1
KVM_EXIT_HYPERV_HCALL = 2
KVM_EXIT_HYPERV_SYNDBG = 3

KVM_INTERNAL_ERROR_EMULATION = 1
KVM_INTERNAL_ERROR_SIMUL_EX = 2
KVM_INTERNAL_ERROR_DELIVERY_EV = 3
KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1 << 0

KVM_SYSTEM_EVENT_SHUTDOWN = 1
KVM_SYSTEM_EVENT_RESET = 2
KVM_SYSTEM_EVENT_CRASH = 3
KVM_SYSTEM_EVENT_WAKEUP = 4
KVM_SYSTEM_EVENT_SUSPEND = 5
KVM_SYSTEM_EVENT_SEV_TERM = 6

KVM_NOTIFY_CONTEXT_INVALID = 1 << 0

INTERNAL_ERRORS = {
    KVM_INTERNAL_ERROR_EMULATION: "KVM could not emulate an instruction",
    KVM_INTERNAL_ERROR_SIMUL_EX: "unexpected simultaneous exceptions",
    KVM_INTERNAL_ERROR_DELIVERY_EV: "an unexpected exit while an event was being delivered",
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: "an exit of the processor that KVM does not know",
}


def shown(data: bytes) -> str:
    """Data of a port or memory access as a number where it is one, else as bytes."""
    if not data:
        return "?"
    if len(data) in (1, 2, 4, 8):
        return f"{int.from_bytes(data, 'little'):#0{2 + 2 * len(data)}x}"
    return data[:32].hex(" ") + (f" ... ({len(data)} bytes)" if len(data) > 32 else "")


class Exit:
    """Base of all exits. `reason` is the KVM_EXIT_ number, `name` its name without that prefix."""

    __slots__ = ()
    reason = -1
    name = ""

    def describe(self) -> str:
        """One line in words, for reports and traces."""
        return self.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.describe()}>"


class Access(Exit):
    """What a port's and a memory access have in common: `is_write`, `size` in bytes, `data`.

    `data` is what the guest wrote; for a read it is empty until answered. A write of one item has its `value` as a
    number too, and may be made of it alone, with None for `data`. Each subclass sets all of them itself: a call costs
    a tenth of what an exit does.
    """

    __slots__ = ("_data", "is_write", "size", "value")
    _data: bytes | None
    is_write: bool
    size: int
    value: int

    @property
    def data(self) -> bytes:
        if self._data is None:
            self._data = self.value.to_bytes(self.size, "little")
        return self._data

    @data.setter
    def data(self, data: bytes) -> None:
        self._data = data


class Pio(Access):
    """Port I/O: `count` items of `size` bytes (1, 2 or 4) at `port`; `count` is above 1 for string instructions.

    `data` has size * count bytes.
    """

    __slots__ = ("count", "port")
    reason = KVM_EXIT_IO
    name = "IO"

    def __init__(
        self, port: int, size: int, count: int, is_write: bool, data: bytes | None = b"", value: int = 0
    ) -> None:
        self.port = port
        self.size = size
        self.count = count
        self.is_write = is_write
        self._data = data
        self.value = int.from_bytes(data, "little") if data and count == 1 else value

    def describe(self) -> str:
        times = f" x{self.count}" if self.count != 1 else ""
        verb, arrow = ("out", "<-") if self.is_write else ("in", "->")
        return f"IO {verb} port {self.port:#x} size {self.size}{times} {arrow} {shown(self.data)}"


class Mmio(Access):
    """Access of `size` bytes (1 to 8) at guest-physical `gpa`, where no memory slot is.

    An access of more than 8 bytes, or one that crosses a page, comes in parts.
    """

    __slots__ = ("gpa",)
    reason = KVM_EXIT_MMIO
    name = "MMIO"

    def __init__(self, gpa: int, size: int, is_write: bool, data: bytes | None = b"", value: int = 0) -> None:
        self.gpa = gpa
        self.size = size
        self.is_write = is_write
        self._data = data
        self.value = int.from_bytes(data, "little") if data else value

    def describe(self) -> str:
        verb, arrow = ("write", "<-") if self.is_write else ("read", "->")
        return f"MMIO {verb} {self.gpa:#x} size {self.size} {arrow} {shown(self.data)}"


class Interrupted(Exit):
    """KVM_RUN came back without an exit: a signal, immediate_exit, or a processor that was only just started."""

    __slots__ = ()
    reason = KVM_EXIT_INTR
    name = "INTR"

    def describe(self) -> str:
        return "INTR (kicked or signalled)"


class InternalError(Exit):
    """KVM gave up. `data` are up to 16 words whose meaning depends on `suberror`.

    `insn_bytes` are the bytes of the instruction that KVM could not emulate, up to 15, where it says
    (KVM_CAP_EXIT_ON_EMULATION_FAILURE). `completed` says what pyvmm made of it after all; "" if nothing.
    """

    __slots__ = ("completed", "data", "insn_bytes", "suberror")
    reason = KVM_EXIT_INTERNAL_ERROR
    name = "INTERNAL_ERROR"

    def __init__(self, suberror: int, data: tuple[int, ...] = (), insn_bytes: bytes = b"") -> None:
        self.suberror = suberror
        self.data = data
        self.insn_bytes = insn_bytes
        self.completed = ""

    def describe(self) -> str:
        text = f"INTERNAL_ERROR suberror {self.suberror}: {INTERNAL_ERRORS.get(self.suberror, 'of unknown kind')}"
        if self.completed:
            return f"{text}; pyvmm completed it: {self.completed}"
        if self.insn_bytes:
            return f"{text}: {self.insn_bytes.hex(' ')}"
        return f"{text} ({', '.join(map(hex, self.data))})" if self.data else text
