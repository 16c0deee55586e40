"""`VmFd`: one virtual machine as KVM sees it: memory slots, vCPUs, clock, filters; interrupts in interrupts.py.

Imports the rest of pyvmm.kvm but system.py. Follows the KVM API document (Documentation/virt/kvm/api.rst), section 4,
"vm ioctl"; sections beside the methods. Every method raises KvmError.
"""

from __future__ import annotations

from errno import ENODEV

from pyvmm.errors import KvmError
from pyvmm.kvm.constants import (
    KVM_CREATE_DEVICE_TEST,
    KVM_MEM_READONLY,
    KVM_MSR_FILTER_DEFAULT_ALLOW,
    KVM_MSR_FILTER_DEFAULT_DENY,
)
from pyvmm.kvm.interrupts import Interrupts
from pyvmm.kvm.native import ffi
from pyvmm.kvm.vcpu import VcpuFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, TypeVar

    from pyvmm._native import _kvm
    from pyvmm.kvm.descriptor import Descriptor
    from pyvmm.kvm.device import DeviceFd
    from pyvmm.kvm.stats import StatsFd

    Child = TypeVar("Child", bound=Descriptor)

PAGE = 4096


class MsrRange:
    """One range of an MSR filter: `allowed` has a byte per MSR from `base` on, true where the guest may (4.97).

    `flags` says which accesses the range decides: KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE or both.
    """

    __slots__ = ("allowed", "base", "flags")

    def __init__(self, flags: int, base: int, allowed: Sequence[bool | int]) -> None:
        self.flags = flags
        self.base = base
        self.allowed = allowed

    def bitmap(self) -> bytes:
        """A bit per MSR, as KVM wants it."""
        bits = sum(1 << i for i, allowed in enumerate(self.allowed) if allowed)
        return bits.to_bytes((len(self.allowed) + 7) // 8, "little")


class VmFd(Interrupts):
    """A virtual machine. Closing it closes its vCPUs and devices first, and gives up guest memory last."""

    __slots__ = ("_children", "_pins", "_vcpu_mmap_size")

    def __init__(self, fd: int, vcpu_mmap_size: int) -> None:
        """Takes over `fd`. `vcpu_mmap_size` is the system's answer to KVM_GET_VCPU_MMAP_SIZE."""
        super().__init__(fd)
        self._vcpu_mmap_size = vcpu_mmap_size
        self._children: list[Descriptor] = []
        self._pins: dict[int, Any] = {}

    def check_extension(self, capability: int) -> int:
        """As `Kvm.check_extension`, for this VM (4.4); some capabilities depend on what the VM is made of."""
        return self.ioctl("KVM_CHECK_EXTENSION", capability)

    def enable_cap(self, capability: int, *args: int) -> None:
        """Switch on a capability of the VM with up to four arguments (4.37)."""
        self.ioctl("KVM_ENABLE_CAP", ffi.new("struct kvm_enable_cap *", {"cap": capability, "args": args}))

    # --- Processors and devices --------------------------------------------------------------------------------

    def create_vcpu(self, index: int) -> VcpuFd:
        """A vCPU with the APIC id `index` (4.7)."""
        return self.adopt(VcpuFd(self.ioctl("KVM_CREATE_VCPU", index), index, self._vcpu_mmap_size, self))

    def has_device(self, type: int) -> bool:
        """Whether KVM could make a device of this type (4.79, KVM_CREATE_DEVICE_TEST)."""
        request = ffi.new("struct kvm_create_device *", {"type": type, "flags": KVM_CREATE_DEVICE_TEST})
        try:
            self.ioctl("KVM_CREATE_DEVICE", request)
        except KvmError as error:
            if error.errno != ENODEV:
                raise
            return False
        return True

    def create_device(self, type: int) -> DeviceFd:
        """A device inside KVM (4.79)."""
        from pyvmm.kvm.device import DeviceFd

        request = ffi.new("struct kvm_create_device *", {"type": type})
        self.ioctl("KVM_CREATE_DEVICE", request)
        return self.adopt(DeviceFd(request.fd, type))

    def stats_fd(self) -> StatsFd:
        """KVM's counters of this VM (4.133; KVM_CAP_BINARY_STATS_FD)."""
        from pyvmm.kvm.stats import StatsFd

        return self.adopt(StatsFd(self.ioctl("KVM_GET_STATS_FD")))

    def set_boot_cpu(self, index: int) -> None:
        """Which vCPU starts by itself (4.41); before the first vCPU is made. KVM begins with 0."""
        self.ioctl("KVM_SET_BOOT_CPU_ID", index)

    def set_tss_addr(self, gpa: int) -> None:
        """Three pages below 4 GiB that KVM uses itself on Intel hosts; nothing else may be there (4.36)."""
        self.ioctl("KVM_SET_TSS_ADDR", gpa)

    def set_identity_map_addr(self, gpa: int) -> None:
        """One page below 4 GiB that KVM uses itself on Intel hosts (4.40). Before the first vCPU is made."""
        self.ioctl("KVM_SET_IDENTITY_MAP_ADDR", ffi.new("uint64_t *", gpa))

    # --- Memory ------------------------------------------------------------------------------------------------

    def set_user_memory_region(self, slot: int, gpa: int, buffer: memoryview | None, flags: int = 0) -> None:
        """Let `buffer` be guest memory from `gpa` on, or change the flags of such a slot (4.35).

        `gpa`, the buffer's address and its length are multiples of 4,096; `flags` are KVM_MEM_LOG_DIRTY_PAGES and
        KVM_MEM_READONLY (writes become MMIO exits). The buffer is kept from being freed or unmapped until the slot is
        removed, by giving None, or the VM closed.
        """
        pin, address, length = None, 0, 0
        if buffer is not None:
            # The view is pinned, so that its release() fails too. The garbage collector must not take one apart that
            # is: of garbage which has both, __del__ comes first, and close() lets go.
            pin = ffi.from_buffer("uint8_t[]", buffer, not flags & KVM_MEM_READONLY)
            address, length = int(ffi.cast("uintptr_t", pin)), len(pin)
        try:
            region = (slot, flags, gpa, length, address)
            self.ioctl("KVM_SET_USER_MEMORY_REGION", ffi.new("struct kvm_userspace_memory_region *", region))
        except BaseException:
            if pin is not None:
                ffi.release(pin)
            raise
        old = self._pins.pop(slot, None)
        if pin is not None:
            self._pins[slot] = pin
        if old is not None:
            ffi.release(old)

    def _pages(self, slot: int) -> int:
        pin = self._pins.get(slot)
        if pin is None:
            raise ValueError(f"slot {slot} has no memory")
        return len(pin) // PAGE

    def dirty_log(self, slot: int) -> bytes:
        """Which pages of `slot` were written since the last call: a bit each, lowest address in bit 0 of byte 0 (4.8).

        The slot has KVM_MEM_LOG_DIRTY_PAGES set. The bits are cleared as they are read, unless
        KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is enabled: then `clear_dirty_log` does that.
        """
        bitmap = ffi.new("uint8_t[]", (self._pages(slot) + 63) // 64 * 8)
        self.ioctl("KVM_GET_DIRTY_LOG", ffi.new("struct kvm_dirty_log *", {"slot": slot, "dirty_bitmap": bitmap}))
        return bytes(ffi.buffer(bitmap))

    def clear_dirty_log(self, slot: int, bitmap: bytes) -> None:
        """Clear the bits that are set in `bitmap`, as `dirty_log` gave it (4.117)."""
        pages = self._pages(slot)
        if len(bitmap) != (pages + 63) // 64 * 8:
            raise ValueError(f"slot {slot} has {pages} pages: its bitmap is not {len(bitmap)} bytes long")
        bits = ffi.new("uint8_t[]", bitmap)
        request = {"slot": slot, "num_pages": pages, "first_page": 0, "dirty_bitmap": bits}
        self.ioctl("KVM_CLEAR_DIRTY_LOG", ffi.new("struct kvm_clear_dirty_log *", request))

    # --- Time and MSRs -----------------------------------------------------------------------------------------

    def get_clock(self) -> _kvm.kvm_clock_data:
        """The guest's kvmclock in nanoseconds and, where the host says so, its real time and TSC (4.29)."""
        state: _kvm.kvm_clock_data = self._get("KVM_GET_CLOCK", "kvm_clock_data")
        return state

    def set_clock(self, state: _kvm.kvm_clock_data) -> None:
        """Set the guest's kvmclock (4.30). Of `flags` only KVM_CLOCK_REALTIME may be set."""
        self.ioctl("KVM_SET_CLOCK", state)

    def set_tsc_khz(self, khz: int) -> None:
        """The TSC rate of vCPUs that are made later (4.55; KVM_CAP_VM_TSC_CONTROL)."""
        self.ioctl("KVM_SET_TSC_KHZ", khz)

    def get_tsc_khz(self) -> int:
        """The TSC rate of vCPUs that are made later, in kHz (4.56; KVM_CAP_VM_TSC_CONTROL)."""
        return self.ioctl("KVM_GET_TSC_KHZ")

    def set_msr_filter(self, ranges: Sequence[MsrRange], default_allow: bool = True) -> None:
        """Which MSRs the guest may access; `default_allow` decides for those in no range (4.97).

        A forbidden access is #GP, or an exit where KVM_CAP_X86_USER_SPACE_MSR asks for one. No ranges lifts the filter.
        """
        default = KVM_MSR_FILTER_DEFAULT_ALLOW if default_allow else KVM_MSR_FILTER_DEFAULT_DENY
        request = ffi.new("struct kvm_msr_filter *", {"flags": default})
        if len(ranges) > len(request.ranges):
            raise ValueError(f"an MSR filter has at most {len(request.ranges)} ranges, not {len(ranges)}")
        bitmaps = [ffi.new("uint8_t[]", one.bitmap()) for one in ranges]
        for i, (one, bitmap) in enumerate(zip(ranges, bitmaps, strict=True)):
            request.ranges[i] = (one.flags, len(one.allowed), one.base, bitmap)
        self.ioctl("KVM_X86_SET_MSR_FILTER", request)

    # --- The end -----------------------------------------------------------------------------------------------

    def adopt(self, child: Child) -> Child:
        """Close `child` with this VM, and before it."""
        self._children.append(child)
        return child

    def close(self) -> None:
        """Close the vCPUs and devices, last made first, then the VM, then give up guest memory."""
        try:
            while self._children:
                self._children.pop().close()
        finally:
            super().close()
            while self._pins:
                ffi.release(self._pins.popitem()[1])
