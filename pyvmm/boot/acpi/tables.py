"""The fixed ACPI tables, and all of them in one block of memory.

Imports dsdt and layout. ACPI specification 6.5, 5.2. The machine is always in ACPI mode (there is no SMI command port,
4.8.2), its fixed hardware is what `pyvmm.devices.acpipm` models.
"""

from __future__ import annotations

from struct import pack, pack_into

from pyvmm import layout
from pyvmm.boot.acpi.dsdt import dsdt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RSDP_LENGTH = 36
FACS_LENGTH = 64
FADT_LENGTH = 276
FADT_REVISION, FADT_MINOR = 6, 5
SYSTEM_IO = 1
"""Address space of a generic address structure (5.2.3.2)."""

# FADT: table 5.9. Boot architecture flags, then fixed feature flags (table 5.10).
LEGACY_DEVICES, HAS_8042, VGA_NOT_PRESENT, MSI_UNSUPPORTED = 1 << 0, 1 << 1, 1 << 2, 1 << 3
WBINVD, PROC_C1, SLP_BUTTON, FIX_RTC, TMR_VAL_EXT, RESET_REG_SUP = 1 << 0, 1 << 2, 1 << 5, 1 << 6, 1 << 8, 1 << 10
"""SLP_BUTTON and FIX_RTC say that the fixed hardware lacks these; PWR_BUTTON, left out, that it has that one."""
NO_C2, NO_C3 = 101, 1001
"""Worst-case latencies in µs beyond which a processor state does not exist."""
RESET_VALUE = 0x06
"""A hard reset, for port 0xcf9."""
CMOS_CENTURY = 0x32

# MADT: 5.2.12. Entry types and flags.
LOCAL_APIC, IO_APIC, SOURCE_OVERRIDE, LOCAL_APIC_NMI = 0, 1, 2, 4
PCAT_COMPAT, CPU_ENABLED = 1, 1
ACTIVE_HIGH_LEVEL = 0b1101
ALL_PROCESSORS = 0xFF


def acpi_tables(
    gpa: int, cpus: int, virtio_mmio: Iterable[tuple[int, int, int]] = (), pci: Sequence[int] | None = None
) -> bytes:
    """All tables for a block that starts at `gpa`, 64-byte aligned, the RSDP first.

    `cpus` is the number of vCPUs, whose APIC ids count from 0; `virtio_mmio` has (gpa, length, gsi) of each transport;
    `pci` the slots of the devices that interrupt by INTA#, None in a machine without PCI.
    """
    block = bytearray(RSDP_LENGTH)

    def put(table: bytes) -> int:
        block.extend(bytes(-len(block) % 64))
        block.extend(table)
        return gpa + len(block) - len(table)

    facs = put(pack("<4sIIIIB", b"FACS", FACS_LENGTH, 0, 0, 0, 0).ljust(FACS_LENGTH, b"\0"))
    definitions = put(_table(b"DSDT", 2, dsdt(virtio_mmio, pci)))
    tables = [put(_fadt(facs, definitions)), put(_madt(cpus))]
    xsdt = put(_table(b"XSDT", 1, b"".join(table.to_bytes(8, "little") for table in tables)))
    block[:RSDP_LENGTH] = _rsdp(xsdt)
    return bytes(block)


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """`body` behind the header that all but the RSDP and the FACS have (5.2.6)."""
    head = pack("<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, b"PYVMM ", b"PYVMMPC ", 1, b"PYVM", 1)
    return _with_checksum(head + body, 9)


def _with_checksum(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([-sum(data) & 0xFF]) + data[at + 1 :]


def _rsdp(xsdt: int) -> bytes:
    """The root pointer, revision 2 (5.2.5.3): one checksum over its first 20 bytes, one over all."""
    first = _with_checksum(pack("<8sB6sBI", b"RSD PTR ", 0, b"PYVMM ", 2, 0), 8)
    return _with_checksum(first + pack("<IQB3x", RSDP_LENGTH, xsdt, 0), 32)


def _io_register(port: int, length: int, access: int) -> bytes:
    """A generic address structure (5.2.3.2) for `length` bytes of ports; `access` is 1 byte, 2 word, 3 dword."""
    return pack("<BBBBQ", SYSTEM_IO, length * 8, 0, access, port)


def _fadt(facs: int, definitions: int) -> bytes:
    pm = layout.ACPI_PM_PORT
    event, control, timer = pm, pm + layout.ACPI_PM_CONTROL, pm + layout.ACPI_PM_TIMER
    events = pm + layout.ACPI_PM_GPE
    fadt = bytearray(FADT_LENGTH - 36)

    def put(offset: int, layout_: str, *values: int | bytes) -> None:
        pack_into("<" + layout_, fadt, offset - 36, *values)

    put(36, "II", facs, definitions)
    put(46, "H", layout.SCI_IRQ)
    put(56, "I", event)
    put(64, "I", control)
    put(76, "I", timer)
    put(80, "I", events)
    put(88, "BBBBB", 4, 2, 0, 4, 2)
    put(96, "HH", NO_C2, NO_C3)
    put(108, "BH", CMOS_CENTURY, LEGACY_DEVICES | HAS_8042 | VGA_NOT_PRESENT)
    put(112, "I", WBINVD | PROC_C1 | SLP_BUTTON | FIX_RTC | TMR_VAL_EXT | RESET_REG_SUP)
    put(116, "12sB", _io_register(layout.RESET_CONTROL_PORT, 1, 1), RESET_VALUE)
    put(131, "B", FADT_MINOR)
    put(140, "Q", definitions)
    put(148, "12s", _io_register(event, 4, 2))
    put(172, "12s", _io_register(control, 2, 2))
    put(208, "12s", _io_register(timer, 4, 3))
    put(220, "12s", _io_register(events, 2, 1))
    return _table(b"FACP", FADT_REVISION, bytes(fadt))


def _madt(cpus: int) -> bytes:
    entries = [pack("<BBBBI", LOCAL_APIC, 8, cpu, cpu, CPU_ENABLED) for cpu in range(cpus)]
    entries.append(pack("<BBBBII", IO_APIC, 12, cpus, 0, layout.IOAPIC, 0))
    entries.append(pack("<BBBBIH", SOURCE_OVERRIDE, 10, 0, layout.SCI_IRQ, layout.SCI_IRQ, ACTIVE_HIGH_LEVEL))
    entries.append(pack("<BBBHB", LOCAL_APIC_NMI, 6, ALL_PROCESSORS, 0, 1))
    return _table(b"APIC", 5, pack("<II", layout.LAPIC, PCAT_COMPAT) + b"".join(entries))
