"""What is in memory: bytes, and the instructions that they are. Imports subject, the disassembler and errors."""

from __future__ import annotations

from pyvmm.debug.disasm import disassemble
from pyvmm.debug.views.subject import place, whole_state_of
from pyvmm.errors import MissingExtraError, UsageError
from pyvmm.paging import PAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.debug.disasm import Instruction
    from pyvmm.debug.views.subject import Subject

ROW = 16
DUMP, DUMP_MOST = 256, 64 << 10
"""Bytes of a hexdump, by default and at most."""
END = 1 << 64
"""Where addresses end."""
INSTRUCTIONS, INSTRUCTIONS_MOST = 8, 1024
LONGEST = 15
"""Bytes of an instruction at most (SDM volume 2A, 2.3.11)."""


def read(vm: Subject, address: int, length: int, vcpu: int, physical: bool) -> list[tuple[int, bytes, int]]:
    """What is there: (address, bytes, gpa) of each piece that is in RAM and in one page, up to `length` bytes.

    Raises UsageError for a length out of range, PyvmmError for a vCPU that cannot be read.
    """
    if not 0 < length <= DUMP_MOST:
        raise UsageError(f"{length} bytes to dump (expected 1 to {DUMP_MOST})")
    state = None if physical else whole_state_of(vm, vcpu)
    pieces, at, end = [], address, min(address + length, END)
    while at < end:
        step = min(end - at, PAGE - at % PAGE)
        gpa = at if state is None else state.paging.translate(vm.memory, at)
        if gpa is not None and vm.memory.contains(gpa, step):
            pieces.append((at, vm.memory.read(gpa, step), gpa))
        at += step
    return pieces


def hexdump(vm: Subject, address: int, length: int = DUMP, *, vcpu: int = 0, physical: bool = False) -> list[str]:
    """`length` bytes from `address`, linear by the page tables of `vcpu`, or with `physical` guest-physical.

    What is not in RAM is said in a line. Raises UsageError, PyvmmError.
    """
    lines: list[str] = []
    at, end = address, min(address + length, END)
    for start, data, gpa in read(vm, address, length, vcpu, physical):
        if start != at:
            lines.append(_gap(at, start))
        if not physical and gpa != start:
            lines.append(f"{start:#x}: gpa {gpa:#x}")
        lines += [_row(start + offset, data[offset : offset + ROW]) for offset in range(0, len(data), ROW)]
        at = start + len(data)
    if at < end:
        lines.append(_gap(at, end))
    return lines


def _row(at: int, data: bytes) -> str:
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)
    halves = data[:8].hex(" "), data[8:].hex(" ")
    return f"{at:016x}  {halves[0]:<23}  {halves[1]:<23}  |{text}|"


def _gap(start: int, end: int) -> str:
    return f"{start:016x}  not in RAM ({end - start} bytes)"


def hexdump_data(
    vm: Subject, address: int, length: int = DUMP, *, vcpu: int = 0, physical: bool = False
) -> dict[str, Any]:
    """The same for programs: the pieces that are in RAM. Raises UsageError, PyvmmError."""
    return {
        "address": hex(address),
        "length": length,
        "physical": physical,
        "pieces": [
            {"address": hex(start), "gpa": hex(gpa), "bytes": data.hex()}
            for start, data, gpa in read(vm, address, length, vcpu, physical)
        ],
    }


def disassembly(vm: Subject, gva: int | None = None, count: int = INSTRUCTIONS, *, vcpu: int = 0) -> list[str]:
    """`count` instructions from linear address `gva` on, by default from RIP, as 16-, 32- or 64-bit code as `vcpu` is.

    Raises UsageError for a count out of range, MissingExtraError without capstone, PyvmmError.
    """
    address, rip, code, found = _decoded(vm, gva, count, vcpu)
    lines, named = [], ""
    for one in found:
        name = vm.symbol(one.address)
        if name and name.partition("+")[0] != named:
            named = name.partition("+")[0]
            lines.append(f"{name}:")
        mark = "->" if one.address == rip else "  "
        lines.append(f"{mark} {one.address:#x}: {one.code.hex(' '):<24} {one.text}{_target(vm, one)}")
    end = found[-1].address + len(found[-1].code) if found else address
    if len(found) < count:
        rest = code[end - address :][:LONGEST]
        lines.append(f"   {end:#x}: " + (f"{rest.hex(' ')}: no instruction" if rest else "not in RAM"))
    return lines


def _target(vm: Subject, instruction: Instruction) -> str:
    """The function that a jump or call with a known target goes to."""
    text = instruction.operands
    if not instruction.mnemonic.startswith(("call", "j")) or not text.startswith("0x"):
        return ""
    try:
        return place(vm, int(text, 16))
    except ValueError:  # a far pointer
        return ""


def _decoded(vm: Subject, gva: int | None, count: int, vcpu: int) -> tuple[int, int, bytes, list[Instruction]]:
    if not 0 < count <= INSTRUCTIONS_MOST:
        raise UsageError(f"{count} instructions (expected 1 to {INSTRUCTIONS_MOST})")
    state = whole_state_of(vm, vcpu)
    address = state.linear_rip if gva is None else gva
    code = state.paging.read(vm.memory, address, LONGEST * count)
    return address, state.linear_rip, code, disassemble(code, address, state.code_bits, count)


def disassembly_data(
    vm: Subject, gva: int | None = None, count: int = INSTRUCTIONS, *, vcpu: int = 0
) -> dict[str, Any]:
    """The same for programs. Raises what `disassembly` does."""
    address, rip, _, found = _decoded(vm, gva, count, vcpu)
    return {
        "address": hex(address),
        "rip": hex(rip),
        "instructions": [
            {
                "address": hex(one.address),
                "bytes": one.code.hex(),
                "text": one.text,
                "symbol": vm.symbol(one.address) or None,
            }
            for one in found
        ],
    }


def code_at(vm: Subject, vcpu: int) -> str:
    """The next instruction of `vcpu` in a line; its bytes without capstone."""
    try:
        return disassembly(vm, None, 1, vcpu=vcpu)[-1].removeprefix("-> ")
    except MissingExtraError:
        state = whole_state_of(vm, vcpu)
        return f"{state.linear_rip:#x}: {state.code(vm.memory, LONGEST).hex(' ') or 'not in RAM'}"
