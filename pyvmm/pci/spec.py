"""The numbers of PCI, each with its section of the PCI Local Bus Specification 3.0. Imports nothing.

Names are those of Linux's <linux/pci_regs.h> without PCI_, with which the tests compare them.
"""

from __future__ import annotations

CONFIG_LENGTH = 256
"""6.1: bytes of a function's configuration space."""

# --- The header of type 0 (6.1, figure 6-1) ----------------------------------------------------------------------
VENDOR_ID = 0x00
DEVICE_ID = 0x02
COMMAND = 0x04
STATUS = 0x06
REVISION_ID = 0x08
CLASS_PROG = 0x09
CACHE_LINE_SIZE = 0x0C
LATENCY_TIMER = 0x0D
HEADER_TYPE = 0x0E
BASE_ADDRESS_0 = 0x10
SUBSYSTEM_VENDOR_ID = 0x2C
SUBSYSTEM_ID = 0x2E
CAPABILITY_LIST = 0x34
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D
STD_HEADER_SIZEOF = 0x40
"""Where capabilities may begin."""
STD_NUM_BARS = 6

COMMAND_MEMORY = 0x2
COMMAND_MASTER = 0x4
COMMAND_INTX_DISABLE = 0x400
"""6.2.2: bits of the command register."""
STATUS_INTERRUPT = 0x08
STATUS_CAP_LIST = 0x10
"""6.2.3: bits of the status register."""

# --- Capabilities (6.7; appendix H) ------------------------------------------------------------------------------
CAP_ID_VNDR = 0x09
CAP_ID_MSIX = 0x11

# --- MSI-X (6.8.2) -----------------------------------------------------------------------------------------------
CAP_MSIX_SIZEOF = 12
MSIX_FLAGS = 2
MSIX_TABLE = 4
MSIX_PBA = 8
"""Offsets in the capability: message control, and where table and pending bits are."""
MSIX_FLAGS_MASKALL = 0x4000
MSIX_FLAGS_ENABLE = 0x8000
MSIX_ENTRY_SIZE = 16
MSIX_ENTRY_LOWER_ADDR = 0
MSIX_ENTRY_UPPER_ADDR = 4
MSIX_ENTRY_DATA = 8
MSIX_ENTRY_VECTOR_CTRL = 12
MSIX_ENTRY_CTRL_MASKBIT = 1

# --- Configuration mechanism #1 (3.2.2.3.2) ----------------------------------------------------------------------
CONFIG_ADDRESS = 0
CONFIG_DATA = 4
"""Offsets from port 0xCF8."""
CONFIG_PORTS = 8
CONFIG_ENABLE = 1 << 31
CONFIG_ADDRESS_BITS = 0x80FFFFFC
"""What the address register keeps: enable, bus, device, function, dword."""
DEVICES = 32
"""On one bus."""

# --- Class codes (appendix D): class, subclass, interface ---------------------------------------------------------
CLASS_STORAGE = 0x018000
CLASS_NETWORK_ETHERNET = 0x020000
CLASS_BRIDGE_HOST = 0x060000
CLASS_COMMUNICATION = 0x078000
CLASS_OTHER = 0xFF0000
