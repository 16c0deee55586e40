"""The MP table: processors and interrupt wiring for kernels that do not read ACPI.

Imports layout. Plain bytes from plain numbers, after Intel's MultiProcessor Specification 1.4, chapter 4. Linux looks
for it in the first KiB of the EBDA before it searches anywhere else; where KVM emulates the guest's ring 0, that saves
it a scan of low memory.
"""

from __future__ import annotations

from struct import pack

from pyvmm import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SPECIFICATION_REVISION = 4
"""Version 1.4."""
LAPIC_VERSION = 0x14
"""What KVM's local APIC shows in its version register (SDM volume 3A, 11.4.8)."""
IOAPIC_VERSION = 0x11
"""What KVM's I/O APIC shows (Intel 82093AA data sheet, 3.2.2)."""
PROCESSOR_ENABLED, PROCESSOR_BOOT = 1, 2
IOAPIC_ENABLED = 1
PCI_BUS = 0
"""The MP table's number of a PCI bus is PCI's own (D.2); ISA then has the next one, and without PCI the first."""
ALL_LOCAL_APICS = 0xFF

# Interrupt types and the flags of an entry: table 4-10, 4-11.
INT, NMI, EXTINT = 0, 1, 3
CONFORMS = 0
"""Polarity and trigger as the bus has them: for ISA, active high and edge; for PCI, active low and level."""
ACTIVE_HIGH_LEVEL = 0b1101
ISA_IRQS = 16
TIMER_IRQ, CASCADE_IRQ = 0, 2


FLOATING_POINTER_LENGTH = 16


def floating_pointer(table: int) -> bytes:
    """The structure by which the table at gpa `table` is found (4.1). No PIC mode: the virtual wire is set up."""
    head = pack("<4sIBBBB4x", b"_MP_", table, FLOATING_POINTER_LENGTH // 16, SPECIFICATION_REVISION, 0, 0)
    return _with_checksum(head, 10)


def configuration_table(cpus: int, pci: Sequence[int] | None = None) -> bytes:
    """The configuration table of `cpus` vCPUs: header and entries (4.2, 4.3).

    APIC ids are 0 to `cpus` - 1, that of the I/O APIC follows. ISA interrupts go to the pin of the same number, as
    KVM's default routing has it. `pci` has the slots whose devices interrupt by INTA#, None in a machine without PCI.
    """
    ioapic = cpus
    isa = 0 if pci is None else PCI_BUS + 1
    entries = [
        pack("<BBBBII8x", 0, cpu, LAPIC_VERSION, PROCESSOR_ENABLED | (0 if cpu else PROCESSOR_BOOT), 0, 0)
        for cpu in range(cpus)
    ]
    if pci is not None:
        entries.append(pack("<BB6s", 1, PCI_BUS, b"PCI   "))
    entries.append(pack("<BB6s", 1, isa, b"ISA   "))
    entries.append(pack("<BBBBI", 2, ioapic, IOAPIC_VERSION, IOAPIC_ENABLED, layout.IOAPIC))
    entries += [
        pack("<BBHBBBB", 3, INT, _flags(irq), isa, irq, ioapic, irq) for irq in range(ISA_IRQS) if irq != CASCADE_IRQ
    ]
    # A PCI interrupt's number is its device's, times 4, and its pin's: D.3.
    entries += [
        pack("<BBHBBBB", 3, INT, CONFORMS, PCI_BUS, slot << 2, ioapic, layout.pci_gsi(slot)) for slot in pci or ()
    ]
    entries.append(pack("<BBHBBBB", 4, EXTINT, CONFORMS, isa, 0, 0, 0))
    entries.append(pack("<BBHBBBB", 4, NMI, CONFORMS, isa, 0, ALL_LOCAL_APICS, 1))
    body = b"".join(entries)
    head = pack(
        "<4sHBB8s12sIHHIHBB",
        b"PCMP",
        HEADER_LENGTH + len(body),
        SPECIFICATION_REVISION,
        0,
        b"PYVMM   ",
        b"PC          ",
        0,
        0,
        len(entries),
        layout.LAPIC,
        0,
        0,
        0,
    )
    return _with_checksum(head + body, 7)


HEADER_LENGTH = 44


def _flags(irq: int) -> int:
    return ACTIVE_HIGH_LEVEL if irq == layout.SCI_IRQ else CONFORMS


def _with_checksum(table: bytes, at: int) -> bytes:
    """`table` with the byte at `at`, now 0, such that all its bytes add up to 0."""
    return table[:at] + bytes([-sum(table) & 0xFF]) + table[at + 1 :]
