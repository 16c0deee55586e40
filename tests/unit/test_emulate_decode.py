"""The decoder of the instructions that pyvmm completes: against capstone, and on whatever bytes there are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.kvm.decodeinsn import GENERAL_REGISTERS, Instruction, decode

PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3"
OPCODES = {
    b"\xcc": "int3", b"\x9b": "fwait", b"\x0f\x01\xca": "clac", b"\x0f\x01\xcb": "stac", b"\x0f\x01\xf9": "rdtscp",
    b"\x0f\xb8": "popcnt", b"\x0f\xc7": "cmpxchg",
}  # fmt: skip
BITS = (16, 32, 64)


@st.composite
def codes(draw: st.DrawFn) -> tuple[bytes, int]:
    """Code of one of the instructions, in a form that exists or not, with more bytes after it."""
    bits = draw(st.sampled_from(BITS))
    opcode = draw(st.sampled_from(sorted(OPCODES)))
    prefixes = bytes(draw(st.lists(st.sampled_from(sorted(PREFIXES)), max_size=3)))
    if opcode == b"\x0f\xb8" and draw(st.integers(0, 9)):
        prefixes += b"\xf3"
    rex = bytes([draw(st.integers(0x40, 0x4F))]) if bits == 64 and draw(st.booleans()) else b""
    modrm = draw(st.integers(0, 255))
    if opcode == b"\x0f\xc7" and draw(st.integers(0, 9)):
        modrm = modrm & 0xC7 | 8
    return prefixes + rex + opcode + bytes([modrm]) + draw(st.binary(min_size=12, max_size=12)), bits


def capstone_of(code: bytes, bits: int):
    import capstone

    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    decoder = capstone.Cs(capstone.CS_ARCH_X86, mode)
    decoder.detail = True
    return next(decoder.disasm(code, 0x1000, 1), None)


def widest(name: str) -> str:
    """The 64-bit register that a register's name is part of."""
    if name in ("", "riz", "eiz"):
        return ""
    if name in ("eip", "rip"):
        return "rip"
    if name.startswith("r") and name[1:].rstrip("wd").isdigit():
        return name.rstrip("wd")
    return "r" + name[-2:]


@pytest.mark.needs("capstone")
@settings(max_examples=400, deadline=None)
@given(codes())
def test_agrees_with_capstone(case: tuple[bytes, int]) -> None:
    import capstone

    code, bits = case
    ours, theirs = decode(code, bits), capstone_of(code, bits)
    if ours is None or theirs is None:
        return
    if theirs.mnemonic.split()[-1] in ("repne", "rep", "lock"):
        return  # it took a prefix for an instruction
    names = {"wait": "fwait"}
    mnemonic = theirs.mnemonic.split()[-1]
    assert ours.name == names.get(mnemonic, mnemonic)
    assert ours.length == theirs.size
    if not ours.size:
        return
    operands = theirs.operands
    memory = operands[-1]
    if ours.memory is None:
        assert memory.type == capstone.x86.X86_OP_REG
        assert ours.source == widest(theirs.reg_name(memory.reg))
    else:
        assert memory.type == capstone.x86.X86_OP_MEM
        mem = memory.mem
        assert ours.memory.base == widest(theirs.reg_name(mem.base) or "")
        assert ours.memory.index == widest(theirs.reg_name(mem.index) or "")
        assert ours.memory.bits == theirs.addr_size * 8
        if ours.memory.index:
            assert ours.memory.scale == mem.scale
        width = (1 << ours.memory.bits) - 1
        assert ours.memory.displacement & width == mem.disp & width
    assert ours.size == memory.size
    if ours.name == "popcnt":
        assert ours.register == widest(theirs.reg_name(operands[0].reg))


@pytest.mark.needs("capstone")
@settings(max_examples=300, deadline=None)
@given(codes())
def test_finds_what_capstone_finds(case: tuple[bytes, int]) -> None:
    code, bits = case
    theirs = capstone_of(code, bits)
    if theirs is None or theirs.mnemonic not in ("popcnt", "cmpxchg8b", "cmpxchg16b", "int3", "wait", "rdtscp"):
        return
    ours = decode(code, bits)
    if theirs.mnemonic == "rdtscp" and set(code[: theirs.size]) & set(b"\x66\xf2\xf3"):
        return  # capstone does not mind prefixes that make it another instruction
    assert ours is not None
    assert ours.length == theirs.size


@given(st.one_of(st.binary(max_size=20), codes().map(lambda case: case[0])), st.sampled_from(BITS))
@settings(max_examples=300)
def test_never_raises_and_never_needs_a_byte_that_is_not_there(code: bytes, bits: int) -> None:
    found = decode(code, bits)
    if found is None:
        return
    assert 0 < found.length <= min(len(code), 15)
    alone = decode(code[: found.length], bits)
    assert alone is not None
    assert describe(alone) == describe(found)
    for shorter in range(found.length):
        assert decode(code[:shorter], bits) is None


def describe(found: Instruction) -> tuple[object, ...]:
    """Its fields in order; of memory: base, bits, displacement, index, scale, segment."""
    memory = found.memory
    parts = None if memory is None else tuple(getattr(memory, name) for name in memory.__slots__)
    return (found.name, found.length, found.lock, found.size, found.register, found.source, parts)


@pytest.mark.parametrize(
    ("code", "bits", "wanted"),
    [
        ("cc", 64, ("int3", 1, False, 0, "", "", None)),
        ("2e9b", 32, ("fwait", 2, False, 0, "", "", None)),
        ("f3480fb8c3", 64, ("popcnt", 5, False, 8, "rax", "rbx", None)),
        ("66f3450fb8c1", 64, ("popcnt", 6, False, 2, "r8", "r9", None)),
        ("f30fb8c3", 16, ("popcnt", 4, False, 2, "rax", "rbx", None)),
        ("66f30fb8c3", 16, ("popcnt", 5, False, 4, "rax", "rbx", None)),
        ("66f3480fb8c3", 64, ("popcnt", 6, False, 8, "rax", "rbx", None)),
        ("f0480fc70e", 64, ("cmpxchg16b", 5, True, 16, "", "", ("rsi", 64, 0, "", 1, "ds"))),
        ("0fc74dfc", 64, ("cmpxchg8b", 4, False, 8, "", "", ("rbp", 64, -4, "", 1, "ss"))),
        ("410fc74dfc", 64, ("cmpxchg8b", 5, False, 8, "", "", ("r13", 64, -4, "", 1, "ds"))),
        ("0fc70c24", 64, ("cmpxchg8b", 4, False, 8, "", "", ("rsp", 64, 0, "", 1, "ss"))),
        ("65480fc70dfcffffff", 64, ("cmpxchg16b", 9, False, 16, "", "", ("rip", 64, -4, "", 1, "gs"))),
        ("0fc70d04000000", 32, ("cmpxchg8b", 7, False, 8, "", "", ("", 32, 4, "", 1, "ds"))),
        ("460fc70ced44332211", 64, ("cmpxchg8b", 9, False, 8, "", "", ("", 64, 0x11223344, "r13", 8, "ds"))),
        ("67640fc74a08", 32, ("cmpxchg8b", 6, False, 8, "", "", ("rbp", 16, 8, "rsi", 1, "fs"))),
        ("2e0fc708", 64, ("cmpxchg8b", 4, False, 8, "", "", ("rax", 64, 0, "", 1, "ds"))),
        ("652e0fc708", 64, ("cmpxchg8b", 5, False, 8, "", "", ("rax", 64, 0, "", 1, "gs"))),
        ("2e0fc708", 32, ("cmpxchg8b", 4, False, 8, "", "", ("rax", 32, 0, "", 1, "cs"))),
        ("0fc70e3412", 16, ("cmpxchg8b", 5, False, 8, "", "", ("", 16, 0x1234, "", 1, "ds"))),
    ],
)
def test_forms(code: str, bits: int, wanted: tuple[object, ...]) -> None:
    found = decode(bytes.fromhex(code), bits)
    assert found is not None
    assert describe(found) == wanted


@pytest.mark.parametrize(
    "code",
    [
        "0fb8c3",  # without F3 it is JMPE, which no processor of today has
        "f3f20fb8c3",  # the last of F2 and F3 counts
        "f30fbdc3",  # lzcnt
        "0fc7c8",  # cmpxchg8b has no register form
        "0fc7f0",  # rdrand
        "660f01ca",
        "f30f01ca",  # eretu
        "f20f01ca",  # erets
        "f30f01f9",
        "48660fb8c3",  # a REX prefix that something follows
        "c5f877",
        "cd03",
        "9d",
    ],
)
def test_others_are_left_alone(code: str) -> None:
    assert decode(bytes.fromhex(code) + bytes(8), 64) is None


def test_no_instruction_is_longer_than_15_bytes() -> None:
    assert decode(b"\x2e" * 14 + b"\xcc", 64) is not None
    assert decode(b"\x2e" * 15 + b"\xcc", 64) is None


def test_registers_are_numbered_as_the_processor_does() -> None:
    for number, name in enumerate(GENERAL_REGISTERS):
        rex = 0x48 | (number >> 3)
        found = decode(bytes([0xF3, rex, 0x0F, 0xB8, 0xC0 | number & 7]), 64)
        assert found is not None
        assert found.source == name
