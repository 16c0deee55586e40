"""The guest-physical map: every address that pyvmm chooses, each with its reason.

Imports nothing. All numbers are guest-physical addresses and byte lengths.

    0x0000_0000  real-mode interrupt vectors and BIOS data area, left to the guest (zero)
    0x0000_0500  GDT                              } what a boot protocol hands to the guest before its
    0x0000_0600  PVH start info, module list      } first instruction; between the BIOS data area and
    0x0000_0800  multiboot information            } 0x7c00, so that a flat image there is untouched
    0x0000_1000  boot page tables: PML4, PDPT, 4 PDs (6 pages, to 0x7000)
    0x0000_7000  boot stack, growing down from 0x7c00 (a BIOS leaves it there too)
    0x0000_7c00  flat image in real mode
    0x0001_0000  Linux boot_params, the "zero page"
    0x0002_0000  kernel command line
    0x0009_fc00  EBDA, reserved in every memory map
    0x000a_0000  VGA and option ROM hole, reserved in every memory map; RAM lies below it all the same
    0x000e_0000  ACPI tables; from 0x000f_0000 an MP table too long for the EBDA
    0x000e_f000  the VM's generation, 16 bytes in a page of their own
    0x0010_0000  flat image in protected and long mode; where ELF kernels usually load themselves
    0xc000_0000  end of low RAM: the 32-bit hole, devices and interrupt controllers
    0xd000_0000  virtio-mmio transports, a page each
    0xe000_0000  PCI's window for memory BARs
    0x1_0000_0000  RAM again
"""

from __future__ import annotations

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
PAGE = 4096

MIN_RAM = 1 * MIB
"""Below this not even the memory map of a PC fits."""
MAX_RAM = 1 << 43
"""8 TiB: a memory slot holds 2^31 - 1 pages at most (KVM_MEM_MAX_NR_PAGES of Linux), and two of them are used."""

# --- Below 1 MiB -----------------------------------------------------------------------------------------------
EBDA_SEGMENT_WORD = 0x40E
"""BIOS data area word with the EBDA's segment; Linux and others look here for the end of low memory."""
BASE_MEMORY_WORD = 0x413
"""BIOS data area word with the KiB of memory below the EBDA; Xen and old boot code trust it."""
BOOT_GDT = 0x500
PVH_START_INFO = 0x600
MULTIBOOT_INFO = 0x800
"""With a module's long name it reaches into the next page: 32-bit mode has no page tables there."""
BOOT_PAGE_TABLES = 0x1000
BOOT_PAGE_TABLES_END = 0x7000
BOOT_STACK = BOOT_PAGE_TABLES_END
"""Lowest byte of the boot stack: 3 KiB of it."""
BOOT_STACK_TOP = 0x7C00
FLAT_REAL_LOAD = 0x7C00
"""Where a BIOS puts a boot sector (and where everybody expects one)."""
BOOT_PARAMS = 0x10000
"""Where Linux's own boot loaders have put its setup data since there was one (boot.rst, "Memory Layout")."""
COMMAND_LINE = 0x20000
COMMAND_LINE_SIZE = 0x10000
"""64 KiB at most with the terminating NUL: more than any of the protocols asks for."""
EBDA = 0x9FC00
"""The usual place of the EBDA, 1 KiB below 640 KiB: Linux scans its first KiB for an MP table."""
LOW_RAM_END = 0xA0000
ACPI_TABLES = 0xE0000
"""Where a PC's kernel searches for the root pointer if its boot protocol has no field for it (ACPI 6.5, 5.2.5.1)."""
VM_GENERATION = 0xEF000
"""A number that is another one in every VM, clones of a snapshot too: memory that no kernel takes for RAM, in a page
where nothing else is, at a multiple of 8 (Microsoft, "Virtual Machine Generation ID", 2012)."""
VM_GENERATION_SIZE = 16
MP_TABLE = 0xF0000
"""For machines whose MP table does not fit into the EBDA: more than 40 processors, or fewer beside PCI devices."""
RESET_VECTOR = 0xFFFF0
"""F000:FFF0, where real-mode code jumps to have the machine reset."""
HIGH_MEMORY = 0x100000
FLAT_LOAD = HIGH_MEMORY

# --- The 32-bit hole -------------------------------------------------------------------------------------------
HOLE_START = 0xC0000000
"""RAM beyond 3 GiB continues above 4 GiB; a quarter of the 32-bit space is left for devices."""
HOLE_END = 1 << 32
IOAPIC_PINS = 24
"""Inputs of KVM's in-kernel IOAPIC, which are the first GSIs (Intel 82093AA data sheet, 2.4)."""
VIRTIO_MMIO = 0xD0000000
"""The first virtio-mmio transport; the others follow, a page each."""
VIRTIO_MMIO_SIZE = PAGE
VIRTIO_GSIS = (5, 6, 7, 10, 11, 3, 14, 15, 12, 13)
"""Their interrupts, in this order, then VIRTIO_HIGH_GSIS: pins of the I/O APIC that nothing else in this machine has,
the ones last that a PC's mouse and coprocessor would have. A command line can announce no others: without ACPI a
kernel knows just the 16 of ISA, as edges (MP specification 1.4, 4.3.4)."""
VIRTIO_HIGH_GSIS = tuple(range(16, IOAPIC_PINS))
PCI_WINDOW = 0xE0000000
PCI_WINDOW_END = 0xFEC00000
"""Where memory BARs may be; they begin as firmware would leave them, one device after the other from PCI_WINDOW on."""
PCI_BARS = 0x10000
"""What is set aside there for the BARs of one device."""
PCI_DEVICES = 31
"""A bus has 32 devices (PCI 3.0, 3.2.2.3.2), and the host bridge is the first."""
PCI_GSIS = (16, 17, 18, 19)
"""INTx of PCI, levels: the pins that virtio-mmio, which is not there beside PCI, would take as edges."""
IOAPIC = 0xFEC00000
"""Where KVM's in-kernel IOAPIC answers (Intel 82093AA data sheet, 3.0)."""
LAPIC = 0xFEE00000
"""Where KVM's in-kernel LAPIC answers after reset (SDM volume 3A, 11.4.1)."""
KVM_IDENTITY_MAP = 0xFFFBC000
"""One page for Intel hosts without unrestricted guest (KVM API, 4.40). Just below the TSS pages."""
KVM_TSS = 0xFFFBD000
"""Three pages for Intel hosts without unrestricted guest (KVM API, 4.35). Ends below a 256 KiB ROM at 4 GiB."""
KVM_RESERVED_END = KVM_TSS + 3 * PAGE
"""From KVM_IDENTITY_MAP to here is KVM's own: reserved in every memory map, so that nobody puts a device there."""

# --- Ports -----------------------------------------------------------------------------------------------------
SERIAL_PORT = 0x3F8
SERIAL_IRQ = 4
"""COM1 of the PC/AT."""
CMOS_PORT = 0x70
RTC_IRQ = 8
I8042_DATA_PORT = 0x60
I8042_COMMAND_PORT = 0x64
POST_CODE_PORT = 0x80
"""Writes here do nothing but take their time: firmware tells how far it is, Linux waits a microsecond (outb_p)."""
PORT_92 = 0x92
RESET_CONTROL_PORT = 0xCF9
PCI_CONFIG_PORT = 0xCF8
PCI_CONFIG_PORTS = 8
"""Configuration mechanism 1 (PCI 3.0, 3.2.2.3.2). The reset control register is in the midst of it: a byte among ports
that take dwords."""
DEBUG_EXIT_PORT = 0xF4
"""Where other VMMs put their debug-exit device by convention; 4 bytes wide at most."""
DEBUG_CONSOLE_PORT = 0xE9
"""Debug console of Bochs."""
FIRMWARE_DEBUG_PORT = 0x402
"""Debug console of SeaBIOS and OVMF."""
PVPANIC_PORT = 0x505
"""Where pvpanic has always been (QEMU's docs/specs/pvpanic)."""
ACPI_PM_PORT = 0x600
"""ACPI's fixed hardware: PM1 event block, control block, PM timer, GPE block. So placed that PM1_CNT is port 0x604,
where a word of 0x2000 switches off other VMMs' machines too."""
ACPI_PM_CONTROL = 4
ACPI_PM_TIMER = 8
ACPI_PM_GPE = 12
"""Offsets of PM1_CNT, PM_TMR and GPE0_BLK from ACPI_PM_PORT."""
ACPI_PM_PORTS = 14
GENERATION_GPE = 0
"""The general-purpose event that tells of another VM generation."""
ACPI_S5_SLEEP_TYPE = 5
"""SLP_TYP for soft-off; any value that DSDT and device agree on."""
SCI_IRQ = 9
"""ACPI's interrupt, the PC's usual one: a level."""


def pci_gsi(device: int, pin: int = 0) -> int:
    """The GSI of interrupt pin `pin` (0 is INTA#) of `device`: they take turns (PCI 3.0, 2.2.6)."""
    return PCI_GSIS[(device + pin) % len(PCI_GSIS)]


def ram_ranges(size: int) -> list[tuple[int, int]]:
    """Where `size` bytes of RAM lie, as (gpa, length): up to 3 GiB from 0, the rest from 4 GiB."""
    low = min(size, HOLE_START)
    ranges = [(0, low)]
    if size > low:
        ranges.append((HOLE_END, size - low))
    return ranges
