"""Flat binaries: bytes without a header, started at their first one. A boot sector is one of these.

Imports entry, placement, errors and layout. Real mode starts as a PC's BIOS leaves it for a boot sector (BIOS Boot
Specification 1.01, 6.5.1: 0000:7c00 with the drive in DL), but there is no BIOS: software interrupts lead nowhere.
"""

from __future__ import annotations

from pyvmm import layout
from pyvmm.boot import entry
from pyvmm.boot.segments import real_segment
from pyvmm.boot.x86 import real_state
from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.boot import BootConfig
    from pyvmm.boot.image import Image
    from pyvmm.boot.placement import Placement
    from pyvmm.boot.x86 import CpuState

BOOT_DRIVE = 0x80
"""DL: the first hard disk."""
REAL_MODE_END = 1 << 20


def load(image: Image, config: BootConfig, placement: Placement) -> CpuState:
    """Load the whole file at `config.load_addr`, or the usual place of `config.flat_mode`, and start there.

    Raises UsageError for an address that the mode cannot start at, LoadError where the file does not fit.
    """
    mode = config.flat_mode or "real"
    gpa = config.load_addr
    if gpa is None:
        gpa = layout.FLAT_REAL_LOAD if mode == "real" else layout.FLAT_LOAD
    entry.claim_stack(placement)
    if mode == "real":
        state = _real_mode(gpa)
    else:
        if gpa >= 1 << 32:
            raise UsageError(f"--load-addr {gpa:#x}: {mode} mode starts below 4 GiB")
        state = entry.protected_mode(placement) if mode == "protected" else entry.long_mode(placement)
        state.rip = gpa
    placement.load(image, 0, image.size, gpa, image.size, "flat binary")
    return state


def _real_mode(gpa: int) -> CpuState:
    """0000:`gpa` where 16 bits reach, as a BIOS has it; else the paragraph `gpa` as CS, DS and ES, and IP 0."""
    if gpa >= REAL_MODE_END:
        raise UsageError(f"--load-addr {gpa:#x}: real mode starts below 1 MiB")
    if gpa <= 0xFFFF:
        state = real_state(0, layout.BOOT_STACK_TOP)
        state.rip = gpa
    elif gpa % 16:
        raise UsageError(f"--load-addr {gpa:#x}: above 64 KiB real mode needs a multiple of 16")
    else:
        state = real_state(gpa >> 4, layout.BOOT_STACK_TOP)
        state.ds = state.es = real_segment(gpa >> 4)
    state.rdx = BOOT_DRIVE
    return state
