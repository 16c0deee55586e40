"""The DSDT: the devices that a kernel does not find by itself, and how to switch the machine off.

Imports aml and layout. ACPI specification 6.5, chapters 5.7 (names), 5.6.4 (general-purpose events) and 6 (device
configuration); Microsoft, "Virtual Machine Generation ID", for the device that tells clones apart. The power button is
the fixed one (4.8.3.1.1): the FADT says so, and no object is needed for it.
"""

from __future__ import annotations

from pyvmm import layout
from pyvmm.boot.acpi import aml

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

VIRTIO_MMIO_ID = "LNRO0005"
"""Linux's virtio-mmio driver binds to it (drivers/virtio/virtio_mmio.c)."""
PVPANIC_ID = "QEMU0001"
"""Linux's pvpanic driver binds to it (drivers/misc/pvpanic/pvpanic-mmio.c)."""


GENERATION_IDS = ("VM_Gen_Counter", "VMGENCTR")
"""What Windows and Linux bind to (drivers/virt/vmgenid.c); the first is longer than ACPI has it, hence the second."""
GENERATION_ID = "PYVM0001"
"""Of no meaning to any kernel: the device must have an id of its own besides."""
GENERATION_CHANGED = 0x80
"""What the device is notified of."""

ALL_FUNCTIONS = 0xFFFF
"""In the low half of a PCI device's address (6.1.1)."""


def dsdt(virtio_mmio: Iterable[tuple[int, int, int]] = (), pci: Sequence[int] | None = None) -> bytes:
    """The table's body.

    `virtio_mmio` has (gpa, length, gsi) of each transport that interrupts by an edge; `pci` the slots of the devices
    that interrupt by INTA#, None in a machine without PCI.
    """
    devices = [
        aml.device(
            "RTC",
            aml.name("_HID", aml.eisa_id("PNP0B00")),
            aml.name("_CRS", aml.resources(aml.io(layout.CMOS_PORT, 2), aml.irq(layout.RTC_IRQ))),
        ),
        aml.device(
            "COM1",
            aml.name("_HID", aml.eisa_id("PNP0501")),
            aml.name("_UID", aml.integer(0)),
            aml.name("_CRS", aml.resources(aml.io(layout.SERIAL_PORT, 8), aml.irq(layout.SERIAL_IRQ))),
        ),
        aml.device(
            "PEVT",
            aml.name("_HID", aml.string(PVPANIC_ID)),
            aml.name("_CRS", aml.resources(aml.io(layout.PVPANIC_PORT, 1))),
        ),
        aml.device(
            "VGEN",
            aml.name("_HID", aml.string(GENERATION_ID)),
            aml.name("_CID", aml.package(*map(aml.string, GENERATION_IDS))),
            aml.name("_DDN", aml.string(GENERATION_IDS[0])),
            aml.name("ADDR", aml.package(aml.integer(layout.VM_GENERATION), aml.integer(0))),
        ),
    ]
    devices += [
        aml.device(
            f"V{number:03X}",
            aml.name("_HID", aml.string(VIRTIO_MMIO_ID)),
            aml.name("_UID", aml.integer(number)),
            aml.name("_CRS", aml.resources(aml.memory32(gpa, length), aml.edge_interrupt(gsi))),
        )
        for number, (gpa, length, gsi) in enumerate(virtio_mmio)
    ]
    if pci is not None:
        devices.append(_host_bridge(pci))
    sleep_type = aml.integer(layout.ACPI_S5_SLEEP_TYPE)
    soft_off = aml.name("_S5", aml.package(sleep_type, sleep_type, aml.integer(0), aml.integer(0)))
    changed = aml.method(f"_E{layout.GENERATION_GPE:02X}", aml.notify("\\_SB.VGEN", GENERATION_CHANGED))
    return aml.scope("_SB", *devices) + aml.scope("_GPE", changed) + soft_off


def _host_bridge(slots: Sequence[int]) -> bytes:
    """Bus 0: its configuration ports, its window, and where each slot's INTA# leads.

    In an entry of _PRT a source of 0 says that what follows is a GSI, which is a level then, active low (6.2.13). An
    MCFG is not there: configuration space is reached by ports alone.
    """
    routes = [
        aml.package(
            aml.integer(slot << 16 | ALL_FUNCTIONS), aml.integer(0), aml.integer(0), aml.integer(layout.pci_gsi(slot))
        )
        for slot in slots
    ]
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_SEG", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        aml.name(
            "_CRS",
            aml.resources(
                aml.bus_numbers(0, 0),
                aml.io(layout.PCI_CONFIG_PORT, layout.PCI_CONFIG_PORTS),
                aml.memory_window(layout.PCI_WINDOW, layout.PCI_WINDOW_END - layout.PCI_WINDOW),
            ),
        ),
        aml.name("_PRT", aml.package(*routes)),
    )
