"""The registers that gdb is told of, and in which order: the target description.

Imports debug.bits. Follows the manual of gdb, appendix "Target Descriptions": "Target Description Format" and "i386
Features"; names and order of its features are those of the descriptions that gdb itself has. A connection keeps the
description that it began with, since gdb reads it once: the mode of the processor then decides. The registers that the
manual does not name come in a feature of their own, `org.pyvmm.system`.
"""

from __future__ import annotations

from pyvmm.debug.bits import CR0, CR4, EFER, RFLAGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ARCHITECTURES = {64: "i386:x86-64", 32: "i386", 16: "i8086"}
"""What gdb calls the modes, by the bits of their code."""


def elf_bits(path: str) -> int:
    """32 or 64 for an ELF file of that class (System V gABI, "ELF Identification"), 0 for another."""
    try:
        with open(path, "rb") as file:
            head = file.read(5)
    except OSError:
        return 0
    return {b"\x7fELF\x01": 32, b"\x7fELF\x02": 64}.get(head, 0)


class Register:
    """One register: its `name` in gdb, its size in `bits`, gdb's `type`, and where its value is (`RegisterFile`)."""

    __slots__ = ("bits", "name", "source", "type")

    def __init__(self, name: str, bits: int, type: str, source: str) -> None:
        self.name = name
        self.bits = bits
        self.type = type
        self.source = source


class Description:
    """The registers of one mode, in gdb's order, and `xml`, which tells gdb of them. `bits` are 16, 32 or 64."""

    __slots__ = ("bits", "features", "registers", "xml")

    def __init__(self, bits: int) -> None:
        self.bits = bits
        wide = bits == 64
        self.features = {
            "org.gnu.gdb.i386.core": [*_core(wide), *_x87()],
            "org.gnu.gdb.i386.sse": _sse(16 if wide else 8),
            **({"org.gnu.gdb.i386.segments": _bases(("fs", "gs"))} if wide else {}),
            "org.pyvmm.system": _system(wide),
        }
        self.registers = [register for registers in self.features.values() for register in registers]
        self.xml = _xml(ARCHITECTURES[bits], self.features).encode()


_WIDE = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)))
_NARROW = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
_SELECTORS = ("cs", "ss", "ds", "es", "fs", "gs")
_CONTROL_WORDS = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")


def _core(wide: bool) -> list[Register]:
    """The general registers by the names of the mode; their values come from the 64-bit ones."""
    bits, names, letter = (64, _WIDE, "r") if wide else (32, _NARROW, "e")
    number = f"int{bits}"
    types = {f"{letter}bp": "data_ptr", f"{letter}sp": "data_ptr"}
    return [
        *(
            Register(name, bits, types.get(name, number), "regs." + (name if wide else "r" + name[1:]))
            for name in names
        ),
        Register(f"{letter}ip", bits, "code_ptr", "pc"),
        Register("eflags", 32, "pyvmm_eflags", "regs.rflags"),
        *(Register(name, 32, "int32", f"selector.{name}") for name in _SELECTORS),
    ]


def _x87() -> list[Register]:
    return [
        *(Register(f"st{number}", 80, "i387_ext", f"st.{number}") for number in range(8)),
        *(Register(name, 32, "int", f"x87.{name}") for name in _CONTROL_WORDS),
    ]


def _sse(count: int) -> list[Register]:
    registers = [Register(f"xmm{number}", 128, "vec128", f"xmm.{number}") for number in range(count)]
    return [*registers, Register("mxcsr", 32, "int", "mxcsr.mxcsr")]


def _bases(names: Iterable[str]) -> list[Register]:
    return [Register(f"{name}_base", 64, "int64", f"base.{name}") for name in names]


def _system(wide: bool) -> list[Register]:
    """What a kernel's author wants to see beside: bases, tables and control registers (SDM volume 3A, 2.4 and 2.5)."""
    return [
        *_bases(_SELECTORS[:4] if wide else _SELECTORS),
        *(Register(name, 32, "int32", f"selector.{name[:-9]}") for name in ("tr_selector", "ldt_selector")),
        *_bases(("tr", "ldt")),
        *(
            Register(f"{table}_{part}", bits, f"int{bits}", f"table.{table}.{part}")
            for table in ("gdt", "idt")
            for part, bits in (("base", 64), ("limit", 32))
        ),
        Register("cr0", 64, "pyvmm_cr0", "control.cr0"),
        *(Register(name, 64, "int64", f"control.{name}") for name in ("cr2", "cr3")),
        Register("cr4", 64, "pyvmm_cr4", "control.cr4"),
        Register("cr8", 64, "int64", "control.cr8"),
        Register("efer", 64, "pyvmm_efer", "control.efer"),
        Register("apic_base", 64, "int64", "control.apic_base"),
        Register("kernel_gs_base", 64, "int64", "msr.kernel_gs_base"),
    ]


_VECTORS = (
    ("v4_float", "ieee_single", 4), ("v2_double", "ieee_double", 2), ("v16_int8", "int8", 16),
    ("v8_int16", "int16", 8), ("v4_int32", "int32", 4), ("v2_int64", "int64", 2),
)  # fmt: skip
"""How an SSE register may be read, as in `p $xmm0.v2_double`: name, gdb's type of an element, and how many."""


def _xml(architecture: str, features: Mapping[str, Iterable[Register]]) -> str:
    types = {
        "org.gnu.gdb.i386.core": _flags("pyvmm_eflags", 4, RFLAGS),
        "org.gnu.gdb.i386.sse": _vectors(),
        "org.pyvmm.system": [
            *_flags("pyvmm_cr0", 8, CR0),
            *_flags("pyvmm_cr4", 8, CR4),
            *_flags("pyvmm_efer", 8, EFER),
        ],
    }
    lines = [
        '<?xml version="1.0"?>',
        '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
        f'<target version="1.0"><architecture>{architecture}</architecture>',
    ]
    for feature, registers in features.items():
        lines += [f'<feature name="{feature}">', *types.get(feature, ())]
        for register in registers:
            group = ' group="float"' if register.source.startswith("x87.f") else ""
            lines.append(f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.type}"{group}/>')
        lines.append("</feature>")
    return "\n".join([*lines, "</target>", ""])


def _flags(name: str, size: int, bits: Mapping[int, str]) -> list[str]:
    fields = (f'<field name="{flag}" start="{bit}" end="{bit}"/>' for bit, flag in sorted(bits.items()))
    return [f'<flags id="{name}" size="{size}">', *fields, "</flags>"]


def _vectors() -> list[str]:
    return [
        *(f'<vector id="{name}" type="{element}" count="{count}"/>' for name, element, count in _VECTORS),
        '<union id="vec128">',
        *(f'<field name="{name}" type="{name}"/>' for name, _, _ in _VECTORS),
        '<field name="uint128" type="uint128"/></union>',
    ]
