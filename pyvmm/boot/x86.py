"""The state in which a processor meets its kernel: its registers, and the page tables of long mode.

Imports segments and cpubits. Everything here is plain data and bytes: `pyvmm.kvm.setup` copies a `CpuState` into a
vCPU, a loader copies the tables into guest memory. Follows the Intel SDM volume 3A, 4.5 (4-level paging), and 3B, 21.1
(real-address mode). Application processors need nothing from here: KVM starts them as INIT and SIPI say.
"""

from __future__ import annotations

from struct import pack

from pyvmm.boot.segments import (
    GDT_LENGTH,
    REAL_IDT_LIMIT,
    REAL_LIMIT,
    TYPE_CODE,
    TYPE_LDT,
    Segment,
    busy_task,
    flat_code,
    flat_data,
    long_code,
    real_segment,
)
from pyvmm.cpubits import (
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    RFLAGS_RESERVED,
)

GENERAL_REGISTERS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
SEGMENT_REGISTERS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")


class CpuState:
    """Everything about the boot processor that a boot protocol has a say in.

    `mode` is "real", "protected" or "long". General registers carry their 64-bit names in every mode and are
    0 unless set: RIP and what a protocol passes are the loader's to fill in. Segment registers are `Segment`;
    tables are given by base (gva) and limit (bytes less one).
    What is not listed here (CR2, CR8, APIC base, MSRs) keeps the value it has after reset.
    """

    __slots__ = (
        "mode",
        *GENERAL_REGISTERS,
        *SEGMENT_REGISTERS,
        "gdt_base", "gdt_limit", "idt_base", "idt_limit",
        "cr0", "cr3", "cr4", "efer",
    )  # fmt: skip

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rbp: int
    rsp: int
    rip: int
    rflags: int

    def __init__(
        self,
        mode: str,
        code: Segment,
        data: Segment,
        task: Segment,
        *,
        gdt: tuple[int, int],
        idt: tuple[int, int],
        cr0: int,
        cr3: int = 0,
        cr4: int = 0,
        efer: int = 0,
    ) -> None:
        for name in GENERAL_REGISTERS:
            setattr(self, name, 0)
        self.mode = mode
        self.rflags = RFLAGS_RESERVED
        self.cs = code
        self.ds = self.es = self.fs = self.gs = self.ss = data
        self.tr = task
        self.ldt = Segment(0, 0, 0, TYPE_LDT, s=0, present=0, unusable=1)
        self.gdt_base, self.gdt_limit = gdt
        self.idt_base, self.idt_limit = idt
        self.cr0 = cr0
        self.cr3 = cr3
        self.cr4 = cr4
        self.efer = efer


def real_state(cs: int, stack: int) -> CpuState:
    """Real-address mode with code segment `cs`, stack at 0:`stack`, the data segments at 0; interrupts off.

    Caches are on, unlike after reset: a BIOS has long enabled them.
    """
    state = CpuState(
        "real",
        real_segment(cs, TYPE_CODE),
        real_segment(0),
        busy_task(),
        gdt=(0, REAL_LIMIT),
        idt=(0, REAL_IDT_LIMIT),
        cr0=CR0_ET,
    )
    state.rsp = stack
    return state


def protected_state(stack: int, gdt_base: int) -> CpuState:
    """32-bit protected mode: flat segments, paging off, ESP at `stack`, GDT at `gdt_base`.

    CR0 is PE alone (beside the hard-wired ET) and CR4 is 0, as the PVH boot ABI asks. There is no IDT: an
    exception before the kernel has one is a triple fault.
    """
    state = CpuState(
        "protected",
        flat_code(),
        flat_data(),
        busy_task(),
        gdt=(gdt_base, GDT_LENGTH - 1),
        idt=(0, 0),
        cr0=CR0_PE | CR0_ET,
    )
    state.rsp = stack
    return state


def long_state(stack: int, gdt_base: int, page_tables: int) -> CpuState:
    """64-bit mode: paging by the tables at `page_tables`, RSP at `stack`, GDT at `gdt_base`.

    There is no IDT: an exception before the kernel has one is a triple fault. SSE is on, because every x86-64
    compiler takes it for granted (System V ABI, AMD64 supplement, 3.2).
    """
    state = CpuState(
        "long",
        long_code(),
        flat_data(),
        busy_task(),
        gdt=(gdt_base, GDT_LENGTH - 1),
        idt=(0, 0),
        cr0=CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_PG,
        cr3=page_tables,
        cr4=CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT,
        efer=EFER_LME | EFER_LMA,
    )
    state.rsp = stack
    return state


# --- Page tables (SDM volume 3A, 4.5) -------------------------------------------------------------
PAGE_TABLE_LENGTH = 4096
PAGE_PRESENT = 1 << 0
PAGE_WRITABLE = 1 << 1
PAGE_LARGE = 1 << 7
"""In a page directory: the entry maps 2 MiB itself."""
LARGE_PAGE = 2 << 20
IDENTITY_SPAN = 4 << 30
IDENTITY_LENGTH = 6 * PAGE_TABLE_LENGTH
"""A PML4, a PDPT, and a page directory for each of the 4 GiB."""


def identity_page_tables(root: int) -> bytes:
    """IDENTITY_LENGTH bytes that, at page-aligned gpa `root`, map the first 4 GiB onto themselves."""
    link = PAGE_PRESENT | PAGE_WRITABLE
    pdpt = root + PAGE_TABLE_LENGTH
    directories = [pdpt + PAGE_TABLE_LENGTH * (i + 1) for i in range(4)]
    leaf = link | PAGE_LARGE
    return b"".join(
        (
            pack("<Q", pdpt | link).ljust(PAGE_TABLE_LENGTH, b"\0"),
            pack("<4Q", *[directory | link for directory in directories]).ljust(PAGE_TABLE_LENGTH, b"\0"),
            pack("<2048Q", *range(leaf, IDENTITY_SPAN, LARGE_PAGE)),
        )
    )
