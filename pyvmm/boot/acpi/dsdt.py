"""The DSDT: the devices that a kernel does not find by itself, and how to switch the machine off.

Imports aml and layout. ACPI specification 6.5, chapters 5.7 (names) and 6 (device configuration). The power button is
the fixed one (4.8.3.1.1): the FADT says so, and no object is needed for it.
"""

from __future__ import annotations

from pyvmm import layout
from pyvmm.boot.acpi import aml

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

VIRTIO_MMIO_ID = "LNRO0005"
"""Linux's virtio-mmio driver binds to it (drivers/virtio/virtio_mmio.c)."""
PVPANIC_ID = "QEMU0001"
"""Linux's pvpanic driver binds to it (drivers/misc/pvpanic/pvpanic-mmio.c)."""


def dsdt(virtio_mmio: Iterable[tuple[int, int, int]] = ()) -> bytes:
    """The table's body. `virtio_mmio` has (gpa, length, gsi) of each transport that interrupts by an edge."""
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
    sleep_type = aml.integer(layout.ACPI_S5_SLEEP_TYPE)
    soft_off = aml.name("_S5", aml.package(sleep_type, sleep_type, aml.integer(0), aml.integer(0)))
    return aml.scope("_SB", *devices) + soft_off
