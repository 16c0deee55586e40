"""Segments and the GDT: what a segment register holds, and the descriptors that put it there.

Imports nothing. Follows the Intel SDM volume 3A, 3.4.5 (descriptors) and 3.5 (system descriptors); sections
are numbered as in the editions of 2023 (docs/course/appendix/further-reading.md says how they move).

One GDT serves every mode. Its selectors are those that the Linux boot protocol asks of a 64-bit loader
(Documentation/arch/x86/boot.rst, "64-bit Boot Protocol": __BOOT_CS 0x10, __BOOT_DS 0x18); no other protocol
cares.
"""

from __future__ import annotations

from struct import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# --- Segment types (SDM volume 3A, 3.4.5.1 and 3.5) -----------------------------------------------
TYPE_DATA = 0x3
"""Read and write, accessed."""
TYPE_CODE = 0xB
"""Execute and read, accessed."""
TYPE_LDT = 0x2
TYPE_TSS_BUSY = 0xB
"""The TSS in use, 32-bit or in IA-32e mode 64-bit. VM entry accepts no other TR (SDM volume 3C, 27.3.1.2)."""

# --- The GDT --------------------------------------------------------------------------------------
CODE_SELECTOR = 0x10
DATA_SELECTOR = 0x18
TSS_SELECTOR = 0x20
GDT_LENGTH = 0x30
"""Six slots: null, unused, code, data, and two for the TSS, which takes 16 bytes in IA-32e mode."""
TSS_LIMIT = 0x67
"""The smallest 32-bit TSS (SDM volume 3A, 8.2.1), and what the PVH boot ABI asks for."""

FLAT_LIMIT = 0xFFFF_FFFF
REAL_LIMIT = 0xFFFF
REAL_IDT_LIMIT = 0x3FF
"""256 vectors of 4 bytes (SDM volume 3B, 21.1.4)."""


class Segment:
    """A segment register with its hidden part: the fields of KVM's `struct kvm_segment`, by the same names.

    `limit` is in bytes, already scaled: 0xffffffff for 4 GiB. `base` and `limit` are what the processor uses,
    whatever `selector` says.
    """

    __slots__ = (
        "selector", "base", "limit", "type", "s", "dpl", "present", "avl", "l", "db", "g", "unusable",
    )  # fmt: skip

    def __init__(
        self,
        selector: int,
        base: int,
        limit: int,
        type: int,
        *,
        s: int = 1,
        dpl: int = 0,
        present: int = 1,
        avl: int = 0,
        l: int = 0,  # noqa: E741 (its name in the SDM and in KVM)
        db: int = 0,
        g: int = 0,
        unusable: int = 0,
    ) -> None:
        self.selector = selector
        self.base = base
        self.limit = limit
        self.type = type
        self.s = s
        self.dpl = dpl
        self.present = present
        self.avl = avl
        self.l = l
        self.db = db
        self.g = g
        self.unusable = unusable

    def descriptor(self) -> int:
        """The 8 bytes of a GDT entry as an integer (SDM volume 3A, 3.4.5, figure 3-8).

        Raises ValueError where base (32 bits) or limit (20 bits of bytes or pages) has no such encoding.
        """
        limit = self.limit >> 12 if self.g else self.limit
        if limit > 0xFFFFF or (self.g and self.limit & 0xFFF != 0xFFF) or self.base > 0xFFFF_FFFF:
            raise ValueError(f"no descriptor holds base {self.base:#x} and limit {self.limit:#x}")
        access = self.type | self.s << 4 | self.dpl << 5 | self.present << 7
        flags = self.avl | self.l << 1 | self.db << 2 | self.g << 3
        return (
            limit & 0xFFFF
            | (self.base & 0xFFFFFF) << 16
            | access << 40
            | (limit >> 16) << 48
            | flags << 52
            | (self.base >> 24) << 56
        )

    @classmethod
    def from_descriptor(cls, descriptor: int, selector: int) -> Segment:
        """What loading `selector` gives when its GDT entry is `descriptor` (8 bytes as an integer)."""
        g = descriptor >> 55 & 1
        limit = descriptor & 0xFFFF | (descriptor >> 48 & 0xF) << 16
        return cls(
            selector,
            descriptor >> 16 & 0xFFFFFF | (descriptor >> 56) << 24,
            limit << 12 | 0xFFF if g else limit,
            descriptor >> 40 & 0xF,
            s=descriptor >> 44 & 1,
            dpl=descriptor >> 45 & 3,
            present=descriptor >> 47 & 1,
            avl=descriptor >> 52 & 1,
            l=descriptor >> 53 & 1,
            db=descriptor >> 54 & 1,
            g=g,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segment):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __repr__(self) -> str:
        return f"Segment({', '.join(f'{name}={getattr(self, name):#x}' for name in self.__slots__)})"


def real_segment(selector: int, type: int = TYPE_DATA) -> Segment:
    """A segment of real-address mode: 64 KiB from 16 times `selector` (0 to 0xffff)."""
    return Segment(selector, selector << 4, REAL_LIMIT, type)


def flat_code() -> Segment:
    """32-bit code over the whole 4 GiB."""
    return Segment(CODE_SELECTOR, 0, FLAT_LIMIT, TYPE_CODE, db=1, g=1)


def long_code() -> Segment:
    """64-bit code. Base and limit count for nothing; L excludes D (SDM volume 3A, 5.2.1)."""
    return Segment(CODE_SELECTOR, 0, FLAT_LIMIT, TYPE_CODE, l=1, g=1)


def flat_data() -> Segment:
    """Read and write data over the whole 4 GiB, for protected and long mode alike."""
    return Segment(DATA_SELECTOR, 0, FLAT_LIMIT, TYPE_DATA, db=1, g=1)


def busy_task() -> Segment:
    """A TSS at address 0: nothing is switched to or read through it before the kernel loads its own."""
    return Segment(TSS_SELECTOR, 0, TSS_LIMIT, TYPE_TSS_BUSY, s=0)


def gdt(segments: Iterable[Segment]) -> bytes:
    """GDT_LENGTH bytes of a GDT with each segment's descriptor at its selector."""
    table = bytearray(GDT_LENGTH)
    for segment in segments:
        table[segment.selector : segment.selector + 8] = pack("<Q", segment.descriptor())
    return bytes(table)
