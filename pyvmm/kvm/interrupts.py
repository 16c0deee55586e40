"""What `VmFd` does with interrupts: in-kernel chips and PIT, lines, routes, and eventfds in both directions.

Imports descriptor.py and plain values; vm.py alone imports this. Follows the KVM API document
(Documentation/virt/kvm/api.rst), section 4, "vm ioctl"; sections beside the methods.
"""

from __future__ import annotations

from pyvmm.kvm.constants import (
    KVM_IOEVENTFD_FLAG_DATAMATCH,
    KVM_IOEVENTFD_FLAG_DEASSIGN,
    KVM_IOEVENTFD_FLAG_PIO,
    KVM_IRQ_ROUTING_IRQCHIP,
    KVM_IRQ_ROUTING_MSI,
    KVM_IRQFD_FLAG_DEASSIGN,
    KVM_IRQFD_FLAG_RESAMPLE,
)
from pyvmm.kvm.descriptor import Descriptor
from pyvmm.kvm.entries import MsiRoute
from pyvmm.kvm.native import ffi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm._native import _kvm
    from pyvmm.kvm.entries import IrqchipRoute


class Interrupts(Descriptor):
    """The interrupt half of a VM's descriptor."""

    __slots__ = ()

    def create_irqchip(self) -> None:
        """In-kernel PICs, IOAPIC and, for every vCPU made later, a local APIC (4.24)."""
        self.ioctl("KVM_CREATE_IRQCHIP")

    def get_irqchip(self, chip: int) -> _kvm.kvm_irqchip:
        """The state of one in-kernel chip, KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC (4.26)."""
        state: _kvm.kvm_irqchip = ffi.new("struct kvm_irqchip *", {"chip_id": chip})
        self.ioctl("KVM_GET_IRQCHIP", state)
        return state

    def set_irqchip(self, state: _kvm.kvm_irqchip) -> None:
        """Set the state of the chip that `state.chip_id` names (4.27)."""
        self.ioctl("KVM_SET_IRQCHIP", state)

    def create_pit2(self, flags: int = 0) -> None:
        """The in-kernel 8254 timer at ports 0x40 to 0x43 (4.71); KVM_PIT_SPEAKER_DUMMY adds port 0x61."""
        self.ioctl("KVM_CREATE_PIT2", ffi.new("struct kvm_pit_config *", {"flags": flags}))

    def get_pit2(self) -> _kvm.kvm_pit_state2:
        """The state of the in-kernel timer (4.72)."""
        state: _kvm.kvm_pit_state2 = self._get("KVM_GET_PIT2", "kvm_pit_state2")
        return state

    def set_pit2(self, state: _kvm.kvm_pit_state2) -> None:
        """Set the state of the in-kernel timer (4.73)."""
        self.ioctl("KVM_SET_PIT2", state)

    def set_pit_reinject(self, reinject: bool) -> None:
        """Whether timer ticks that the guest missed are delivered later (4.99). KVM begins with True."""
        self.ioctl("KVM_REINJECT_CONTROL", ffi.new("struct kvm_reinject_control *", {"pit_reinject": reinject}))

    def irq_line(self, gsi: int, level: bool) -> None:
        """Set the level of an interrupt line (4.25)."""
        self.ioctl("KVM_IRQ_LINE", ffi.new("struct kvm_irq_level *", (gsi, level)))

    def irq_line_status(self, gsi: int, level: bool) -> int:
        """As `irq_line`, and what became of it: below 0 masked, 0 coalesced, above 0 delivered (4.25)."""
        request = ffi.new("struct kvm_irq_level *", (gsi, level))
        self.ioctl("KVM_IRQ_LINE_STATUS", request)
        return int(ffi.cast("int32_t", request.irq))

    def set_gsi_routing(self, routes: Sequence[IrqchipRoute | MsiRoute]) -> None:
        """Say where every GSI goes (4.52). The whole table at once: routes not named are gone."""
        entries = []
        for route in routes:
            if isinstance(route, MsiRoute):
                low, high = route.address & 0xFFFFFFFF, route.address >> 32
                target = {"msi": {"address_lo": low, "address_hi": high, "data": route.data}}
                entries.append({"gsi": route.gsi, "type": KVM_IRQ_ROUTING_MSI, "u": target})
            else:
                target = {"irqchip": {"irqchip": route.irqchip, "pin": route.pin}}
                entries.append({"gsi": route.gsi, "type": KVM_IRQ_ROUTING_IRQCHIP, "u": target})
        table = ffi.new("struct kvm_irq_routing *", {"nr": len(entries), "entries": entries})
        self.ioctl("KVM_SET_GSI_ROUTING", table)

    def signal_msi(self, address: int, data: int) -> bool:
        """Send one message-signalled interrupt (4.71); False if the guest has it masked."""
        request = {"address_lo": address & 0xFFFFFFFF, "address_hi": address >> 32, "data": data}
        return self.ioctl("KVM_SIGNAL_MSI", ffi.new("struct kvm_msi *", request)) > 0

    def irqfd(self, fd: int, gsi: int, resample_fd: int | None = None) -> None:
        """Let eventfd `fd` raise interrupt `gsi` without a system call (4.75).

        Alone it is an edge. With eventfd `resample_fd` it is a level that falls when the guest ends the interrupt;
        `resample_fd` is signalled then, and whoever still wants the interrupt signals `fd` again.
        """
        request = ffi.new("struct kvm_irqfd *", {"fd": fd, "gsi": gsi})
        if resample_fd is not None:
            request.flags = KVM_IRQFD_FLAG_RESAMPLE
            request.resamplefd = resample_fd
        self.ioctl("KVM_IRQFD", request)

    def irqfd_remove(self, fd: int, gsi: int) -> None:
        """Undo `irqfd` (4.75)."""
        self.ioctl("KVM_IRQFD", ffi.new("struct kvm_irqfd *", {"fd": fd, "gsi": gsi, "flags": KVM_IRQFD_FLAG_DEASSIGN}))

    def ioeventfd(self, fd: int, address: int, length: int, datamatch: int | None = None, pio: bool = False) -> None:
        """Let guest writes to `address`, a gpa or with `pio` a port, signal eventfd `fd` without an exit (4.59).

        `length` is the access's width, 1, 2, 4 or 8 bytes, or 0 for any. With `datamatch` only writes of that value.
        """
        self._ioeventfd(fd, address, length, datamatch, pio, 0)

    def ioeventfd_remove(
        self, fd: int, address: int, length: int, datamatch: int | None = None, pio: bool = False
    ) -> None:
        """Undo `ioeventfd`, called with the same arguments (4.59). Takes KVM some milliseconds."""
        self._ioeventfd(fd, address, length, datamatch, pio, KVM_IOEVENTFD_FLAG_DEASSIGN)

    def _ioeventfd(self, fd: int, address: int, length: int, datamatch: int | None, pio: bool, flags: int) -> None:
        if pio:
            flags |= KVM_IOEVENTFD_FLAG_PIO
        if datamatch is not None:
            flags |= KVM_IOEVENTFD_FLAG_DATAMATCH
        request = {"datamatch": datamatch or 0, "addr": address, "len": length, "fd": fd, "flags": flags}
        self.ioctl("KVM_IOEVENTFD", ffi.new("struct kvm_ioeventfd *", request))

    def register_coalesced(self, address: int, length: int, pio: bool = False) -> None:
        """Let KVM collect guest writes to this range instead of exiting for each (4.116).

        They stay in the ring that `VcpuFd.drain_coalesced` empties; a full ring exits. `pio` needs
        KVM_CAP_COALESCED_PIO.
        """
        zone = ffi.new("struct kvm_coalesced_mmio_zone *", (address, length, pio))
        self.ioctl("KVM_REGISTER_COALESCED_MMIO", zone)

    def unregister_coalesced(self, address: int, length: int, pio: bool = False) -> None:
        """Undo `register_coalesced` (4.116). Takes KVM some milliseconds."""
        zone = ffi.new("struct kvm_coalesced_mmio_zone *", (address, length, pio))
        self.ioctl("KVM_UNREGISTER_COALESCED_MMIO", zone)
