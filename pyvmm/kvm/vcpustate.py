"""What `VcpuFd` does with a processor's state: one pair of methods for every group of registers.

Imports descriptor.py and plain values; vcpu.py alone imports this. Structures are cffi wrappers with the fields of
kvm_abi.h as attributes (pyvmm/_native/_kvm.pyi lists them). Follows the KVM API document
(Documentation/virt/kvm/api.rst), section 4, "vcpu ioctl"; sections beside the methods. Every method raises KvmError.
"""

from __future__ import annotations

from pyvmm.kvm.constants import KVM_CAP_XSAVE2
from pyvmm.kvm.descriptor import Attributes, check
from pyvmm.kvm.entries import CpuidEntry
from pyvmm.kvm.native import ffi, lib, sizeof

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from pyvmm._native import _kvm
    from pyvmm.kvm.registerview import Registers
    from pyvmm.kvm.vm import VmFd

HIGHEST_SIGNAL = 64
"""The kernel's sigset has as many bits; signal 1 is bit 0 (asm-generic/signal.h)."""


def cpuid_entries(table: Any) -> list[CpuidEntry]:
    """The entries of a struct kvm_cpuid2."""
    return [
        CpuidEntry(row.function, row.index, row.flags, row.eax, row.ebx, row.ecx, row.edx)
        for row in (table.entries[i] for i in range(table.nent))
    ]


class VcpuState(Attributes):
    """The registers half of a vCPU's descriptor."""

    __slots__ = ("vm",)

    vm: VmFd

    @property
    def registers(self) -> Registers:
        """A copy of the registers by name; they mean something only while the vCPU does not run."""
        from pyvmm.kvm.registerview import Registers

        return Registers(self)

    def get_regs(self) -> _kvm.kvm_regs:
        """General registers, RIP and RFLAGS (4.11)."""
        state: _kvm.kvm_regs = self._get("KVM_GET_REGS", "kvm_regs")
        return state

    def set_regs(self, state: _kvm.kvm_regs) -> None:
        """Set what `get_regs` gives (4.12)."""
        self.ioctl("KVM_SET_REGS", state)

    def get_sregs(self) -> _kvm.kvm_sregs:
        """Segments, descriptor tables, control registers, EFER, APIC base (4.13)."""
        state: _kvm.kvm_sregs = self._get("KVM_GET_SREGS", "kvm_sregs")
        return state

    def set_sregs(self, state: _kvm.kvm_sregs) -> None:
        """Set what `get_sregs` gives (4.14)."""
        self.ioctl("KVM_SET_SREGS", state)

    def get_sregs2(self) -> _kvm.kvm_sregs2:
        """As `get_sregs`, with the PDPTRs of PAE paging (4.131; KVM_CAP_SREGS2)."""
        state: _kvm.kvm_sregs2 = self._get("KVM_GET_SREGS2", "kvm_sregs2")
        return state

    def set_sregs2(self, state: _kvm.kvm_sregs2) -> None:
        """Set what `get_sregs2` gives (4.132)."""
        self.ioctl("KVM_SET_SREGS2", state)

    def get_fpu(self) -> _kvm.kvm_fpu:
        """x87 and SSE registers (4.22)."""
        state: _kvm.kvm_fpu = self._get("KVM_GET_FPU", "kvm_fpu")
        return state

    def set_fpu(self, state: _kvm.kvm_fpu) -> None:
        """Set what `get_fpu` gives (4.23)."""
        self.ioctl("KVM_SET_FPU", state)

    def get_xsave(self) -> _kvm.kvm_xsave:
        """The XSAVE area: all extended state of the processor (4.42; 4.134 where it may exceed 4,096 bytes)."""
        size = self.vm.check_extension(KVM_CAP_XSAVE2)
        extra = max(0, size - sizeof("struct kvm_xsave")) // 4
        state: _kvm.kvm_xsave = ffi.new("struct kvm_xsave *", {"extra": extra})
        self.ioctl("KVM_GET_XSAVE2" if size else "KVM_GET_XSAVE", state)
        return state

    def set_xsave(self, state: _kvm.kvm_xsave) -> None:
        """Set what `get_xsave` gives (4.43)."""
        self.ioctl("KVM_SET_XSAVE", state)

    def get_xcrs(self) -> _kvm.kvm_xcrs:
        """Extended control registers: XCR0 (4.44)."""
        state: _kvm.kvm_xcrs = self._get("KVM_GET_XCRS", "kvm_xcrs")
        return state

    def set_xcrs(self, state: _kvm.kvm_xcrs) -> None:
        """Set what `get_xcrs` gives (4.45)."""
        self.ioctl("KVM_SET_XCRS", state)

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """The values of some MSRs (4.18). Those from the first one on that KVM does not give are left out."""
        wanted = list(indices)
        table = self._msrs([(index, 0) for index in wanted])
        done = self.ioctl("KVM_GET_MSRS", table)
        return {index: int(table.entries[i].data) for i, index in enumerate(wanted[:done])}

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """Set some MSRs, in the order given (4.19). Raises ValueError naming the first one that KVM refuses."""
        entries = list(values.items())
        done = self.ioctl("KVM_SET_MSRS", self._msrs(entries))
        if done < len(entries):
            index, value = entries[done]
            raise ValueError(f"KVM refuses {value:#x} for MSR {index:#x}")

    @staticmethod
    def _msrs(entries: Sequence[tuple[int, int]]) -> Any:
        rows = [{"index": index, "data": value} for index, value in entries]
        return ffi.new("struct kvm_msrs *", {"nmsrs": len(rows), "entries": rows})

    def get_cpuid2(self) -> list[CpuidEntry]:
        """What the guest's CPUID instruction answers (4.20)."""
        return cpuid_entries(self._get_list("KVM_GET_CPUID2", "kvm_cpuid2", "nent", "entries"))

    def set_cpuid2(self, entries: Sequence[CpuidEntry]) -> None:
        """Set what the guest's CPUID instruction answers (4.20). Before the vCPU first runs."""
        rows = [(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in entries]
        self.ioctl("KVM_SET_CPUID2", ffi.new("struct kvm_cpuid2 *", {"nent": len(rows), "entries": rows}))

    def get_lapic(self) -> _kvm.kvm_lapic_state:
        """The registers of the in-kernel local APIC (4.57)."""
        state: _kvm.kvm_lapic_state = self._get("KVM_GET_LAPIC", "kvm_lapic_state")
        return state

    def set_lapic(self, state: _kvm.kvm_lapic_state) -> None:
        """Set what `get_lapic` gives (4.58)."""
        self.ioctl("KVM_SET_LAPIC", state)

    def get_mp_state(self) -> int:
        """Whether the processor runs, halts or waits to be started: one of KVM_MP_STATE_ (4.38)."""
        return int(self._get("KVM_GET_MP_STATE", "kvm_mp_state").mp_state)

    def set_mp_state(self, state: int) -> None:
        """Set what `get_mp_state` gives (4.39)."""
        self.ioctl("KVM_SET_MP_STATE", ffi.new("struct kvm_mp_state *", (state,)))

    def get_vcpu_events(self) -> _kvm.kvm_vcpu_events:
        """Exceptions, interrupts and NMIs that wait or are being delivered (4.31)."""
        state: _kvm.kvm_vcpu_events = self._get("KVM_GET_VCPU_EVENTS", "kvm_vcpu_events")
        return state

    def set_vcpu_events(self, state: _kvm.kvm_vcpu_events) -> None:
        """Set what `get_vcpu_events` gives; `state.flags` says which optional parts count (4.32)."""
        self.ioctl("KVM_SET_VCPU_EVENTS", state)

    def get_debugregs(self) -> _kvm.kvm_debugregs:
        """DR0 to DR3, DR6, DR7 (4.33)."""
        state: _kvm.kvm_debugregs = self._get("KVM_GET_DEBUGREGS", "kvm_debugregs")
        return state

    def set_debugregs(self, state: _kvm.kvm_debugregs) -> None:
        """Set what `get_debugregs` gives (4.34)."""
        self.ioctl("KVM_SET_DEBUGREGS", state)

    def get_tsc_khz(self) -> int:
        """The rate of the guest's time stamp counter, in kHz (4.56)."""
        return self.ioctl("KVM_GET_TSC_KHZ")

    def set_tsc_khz(self, khz: int) -> None:
        """Set the rate of the guest's time stamp counter, in kHz (4.55). Another than the host's needs TSC scaling."""
        self.ioctl("KVM_SET_TSC_KHZ", khz)

    def guest_debug(self, control: int, debugreg: Sequence[int] = ()) -> None:
        """Turn debugging of the guest by user space on or off (4.87).

        `control` is made of KVM_GUESTDBG_, 0 for off. `debugreg` are DR0 to DR7 for KVM_GUESTDBG_USE_HW_BP.
        """
        request = {"control": control, "arch": {"debugreg": debugreg}}
        self.ioctl("KVM_SET_GUEST_DEBUG", ffi.new("struct kvm_guest_debug *", request))

    def translate(self, gva: int) -> int | None:
        """The guest-physical address of `gva` by the guest's own page tables; None if it is not mapped (4.15)."""
        request = ffi.new("struct kvm_translation *", {"linear_address": gva})
        self.ioctl("KVM_TRANSLATE", request)
        return int(request.physical_address) if request.valid else None

    def nmi(self) -> None:
        """Send the processor a non-maskable interrupt (4.64)."""
        self.ioctl("KVM_NMI")

    def interrupt(self, vector: int) -> None:
        """Queue interrupt `vector`; only in a VM without in-kernel interrupt controllers (4.16)."""
        self.ioctl("KVM_INTERRUPT", ffi.new("struct kvm_interrupt *", (vector,)))

    def kvmclock_ctrl(self) -> None:
        """Tell the guest that it was stopped, so that its watchdogs stay calm (4.70).

        Raises KvmError with EINVAL where the guest does not use kvmclock.
        """
        self.ioctl("KVM_KVMCLOCK_CTRL")

    def enable_cap(self, capability: int, *args: int) -> None:
        """Switch on a capability of the vCPU with up to four arguments (4.37)."""
        self.ioctl("KVM_ENABLE_CAP", ffi.new("struct kvm_enable_cap *", {"cap": capability, "args": args}))

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """The signals that are blocked while, and only while, the vCPU runs (4.21); None: as outside."""
        if blocked is None:
            # Not through ioctl(): the pointer that lifts the mask is NULL.
            check(lib.pyvmm_ioctl(self._fd, lib.KVM_SET_SIGNAL_MASK, 0), "KVM_SET_SIGNAL_MASK")
            return
        bits = 0
        for number in blocked:
            if not 1 <= number <= HIGHEST_SIGNAL:
                raise ValueError(f"{number} is no signal: 1 to {HIGHEST_SIGNAL}")
            bits |= 1 << (number - 1)
        sigset = bits.to_bytes(HIGHEST_SIGNAL // 8, "little")
        self.ioctl("KVM_SET_SIGNAL_MASK", ffi.new("struct kvm_signal_mask *", {"len": len(sigset), "sigset": sigset}))
