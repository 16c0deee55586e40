"""What firmware would have left in memory for any kernel to find: MP table, ACPI tables, and a way to reset.

Imports mptable, acpi, placement and layout.
"""

from __future__ import annotations

import os
from struct import pack

from pyvmm import layout
from pyvmm.boot.acpi.tables import acpi_tables
from pyvmm.boot.mptable import FLOATING_POINTER_LENGTH, configuration_table, floating_pointer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyvmm.boot.placement import Placement


RESET_CODE = bytes.fromhex("baf90c b006 ee f4 ebfd")
"""mov $0xcf9, %dx; mov $6, %al; out %al, (%dx); 1: hlt; jmp 1b: a hard reset by the reset control register."""


def put_tables(
    placement: Placement,
    cpus: int,
    virtio_mmio: Iterable[tuple[int, int, int]] = (),
    pci: Sequence[int] | None = None,
) -> int:
    """Write the tables of a machine with `cpus` vCPUs; returns the gpa of ACPI's root pointer.

    `virtio_mmio` has (gpa, length, gsi) of each transport; `pci` the slots of the devices that interrupt by INTA#, None
    in a machine without PCI. Raises LoadError when the kernel itself lies there.
    """
    table = configuration_table(cpus, pci)
    room = layout.LOW_RAM_END - layout.EBDA - FLOATING_POINTER_LENGTH
    at = layout.EBDA + FLOATING_POINTER_LENGTH if len(table) <= room else layout.MP_TABLE
    placement.put(layout.EBDA, floating_pointer(at), "MP floating pointer")
    placement.put(at, table, "MP table")
    placement.put(layout.EBDA_SEGMENT_WORD, pack("<H", layout.EBDA >> 4), "EBDA segment")
    placement.put(layout.BASE_MEMORY_WORD, pack("<H", layout.EBDA // layout.KIB), "base memory size")
    placement.put(layout.RESET_VECTOR, RESET_CODE, "reset code")
    placement.put(layout.VM_GENERATION, os.urandom(layout.VM_GENERATION_SIZE), "VM generation")
    placement.put(layout.ACPI_TABLES, acpi_tables(layout.ACPI_TABLES, cpus, virtio_mmio, pci), "ACPI tables")
    return layout.ACPI_TABLES
