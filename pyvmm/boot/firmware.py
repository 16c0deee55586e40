"""What firmware would have left in memory for any kernel to find: the MP table and the ACPI tables.

Imports mptable, acpi, placement and layout.
"""

from __future__ import annotations

from struct import pack

from pyvmm import layout
from pyvmm.boot.acpi.tables import acpi_tables
from pyvmm.boot.mptable import FLOATING_POINTER_LENGTH, configuration_table, floating_pointer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvmm.boot.placement import Placement


def put_tables(placement: Placement, cpus: int, virtio_mmio: Iterable[tuple[int, int, int]] = ()) -> int:
    """Write the tables of a machine with `cpus` vCPUs; returns the gpa of ACPI's root pointer.

    `virtio_mmio` has (gpa, length, gsi) of each transport. Raises LoadError when the kernel itself lies there.
    """
    table = configuration_table(cpus)
    room = layout.LOW_RAM_END - layout.EBDA - FLOATING_POINTER_LENGTH
    at = layout.EBDA + FLOATING_POINTER_LENGTH if len(table) <= room else layout.MP_TABLE
    placement.put(layout.EBDA, floating_pointer(at), "MP floating pointer")
    placement.put(at, table, "MP table")
    placement.put(layout.EBDA_SEGMENT_WORD, pack("<H", layout.EBDA >> 4), "EBDA segment")
    placement.put(layout.ACPI_TABLES, acpi_tables(layout.ACPI_TABLES, cpus, virtio_mmio), "ACPI tables")
    return layout.ACPI_TABLES
