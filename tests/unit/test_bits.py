"""The names and numbers of the processor's bits against the kernel's headers, a second reader of the manuals."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyvmm import cpubits
from pyvmm.debug import bits
from pyvmm.debug.gdb.points import ACCESS, EXECUTE, WRITE, Points
from pyvmm.kvm.host import DebugAbilities
from pyvmm.memory import GuestMemory

HEADERS = Path("/usr/include/x86_64-linux-gnu/asm")
TABLES = {"EFLAGS": bits.RFLAGS, "CR0": bits.CR0, "CR4": bits.CR4}
NOT_ONE_NAMED_BIT = {"FIXED", "IOPL"}


def header(name: str) -> str:
    path = HEADERS / name
    if not path.exists():
        pytest.skip(f"there is no {path}")
    return path.read_text()


def numbers(text: str) -> dict[str, int]:
    """The macros that are a plain number, with or without parentheses."""
    found = re.findall(r"^#define\s+(\w+)\s+\(?(0x[0-9a-fA-F]+|\d+)\)?(?=\s|$)", text, re.MULTILINE)
    return {name: int(value, 0) for name, value in found}


@pytest.mark.parametrize("register", TABLES)
def test_flags_and_control_registers_are_named_as_in_the_header(register: str) -> None:
    known = re.findall(rf"^#define X86_{register}_(\w+)_BIT\s+(\d+)", header("processor-flags.h"), re.MULTILINE)
    theirs = {int(bit): name for name, bit in known if name not in NOT_ONE_NAMED_BIT}
    ours = {bit: name for bit, name in TABLES[register].items() if bit in theirs}
    assert len(ours) > 10
    assert ours == {bit: theirs[bit] for bit in ours}  # a header newer than pyvmm may name more


def test_the_debug_registers_bits_are_the_header_s() -> None:
    known = numbers(header("debugreg.h"))
    traps = {known[f"DR_TRAP{at}"]: f"B{at}" for at in range(4)} | {known["DR_STEP"]: "BS", known["DR_SWITCH"]: "BT"}
    for bit, name in traps.items():
        assert bits.DR6[bit.bit_length() - 1] == name
    assert known["DR_STEP"] == cpubits.DR6_BS
    local = sum(1 << bit for bit, name in bits.DR7.items() if re.fullmatch(r"L\d", name))
    everywhere = sum(1 << bit for bit, name in bits.DR7.items() if re.fullmatch(r"G\d", name))
    assert (local, everywhere) == (known["DR_LOCAL_ENABLE_MASK"], known["DR_GLOBAL_ENABLE_MASK"])
    assert bits.DR7[known["DR_LOCAL_SLOWDOWN"].bit_length() - 1] == "LE"
    assert bits.DR7[known["DR_GLOBAL_SLOWDOWN"].bit_length() - 1] == "GE"


@pytest.mark.parametrize(
    ("kind", "length", "rw", "size"),
    [
        (EXECUTE, 1, "DR_RW_EXECUTE", "DR_LEN_1"),
        (WRITE, 2, "DR_RW_WRITE", "DR_LEN_2"),
        (WRITE, 4, "DR_RW_WRITE", "DR_LEN_4"),
        (ACCESS, 8, "DR_RW_READ", "DR_LEN_8"),
    ],
)
def test_a_breakpoint_is_put_into_dr7_as_the_header_says(kind: int, length: int, rw: str, size: str) -> None:
    known = numbers(header("debugreg.h"))
    memory = GuestMemory.allocate([(0, 4096)])
    points = Points(memory, DebugAbilities())
    points.hardware = [(EXECUTE, 0x1000, 1), (kind, 0x2000, length)]
    registers = points.debug_registers()
    assert registers[:4] == [0x1000, 0x2000, 0, 0]
    shift = known["DR_CONTROL_SHIFT"] + known["DR_CONTROL_SIZE"]
    assert registers[7] >> shift & 0xF == known[rw] | known[size]
    assert registers[7] & 0xFF == known["DR_GLOBAL_ENABLE"] | known["DR_GLOBAL_ENABLE"] << known["DR_ENABLE_SIZE"]
    memory.close()
