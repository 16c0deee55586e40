"""Putting the processor into the mode that a boot protocol starts in, with the tables that the mode needs.

Imports x86, segments, placement and layout. Each function claims its tables before the kernel's own segments are
loaded, so that a kernel which wants their place is refused with the offset in its file.
"""

from __future__ import annotations

from pyvmm import layout
from pyvmm.boot import x86
from pyvmm.boot.segments import busy_task, flat_code, flat_data, gdt, long_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.boot.placement import Placement
    from pyvmm.boot.segments import Segment
    from pyvmm.boot.x86 import CpuState


def claim_stack(placement: Placement) -> None:
    """Keep the boot stack free: for kernels that no protocol tells to bring their own."""
    placement.claim(layout.BOOT_STACK, layout.BOOT_STACK_TOP - layout.BOOT_STACK, "boot stack")


def protected_mode(placement: Placement) -> CpuState:
    """32-bit protected mode: the GDT is written, RIP is left for the loader."""
    _put_gdt(placement, flat_code())
    return x86.protected_state(layout.BOOT_STACK_TOP, layout.BOOT_GDT)


def long_mode(placement: Placement) -> CpuState:
    """64-bit mode: GDT and page tables of the first 4 GiB are written, RIP is left for the loader."""
    _put_gdt(placement, long_code())
    placement.put(layout.BOOT_PAGE_TABLES, x86.identity_page_tables(layout.BOOT_PAGE_TABLES), "boot page tables")
    return x86.long_state(layout.BOOT_STACK_TOP, layout.BOOT_GDT, layout.BOOT_PAGE_TABLES)


def _put_gdt(placement: Placement, code: Segment) -> None:
    placement.put(layout.BOOT_GDT, gdt((code, flat_data(), busy_task())), "boot GDT")
