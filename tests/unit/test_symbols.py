"""Names for addresses: from vmlinux and System.map, and from files that are neither or lie."""

from __future__ import annotations

import shutil
import struct
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.boot.image import BufferImage
from pyvmm.debug import symbols
from pyvmm.debug.symbols import Source, Symbols, read
from pyvmm.errors import LoadError
from tests.support.elfbuild import patched

MAP = b"""\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000000 T startup_64
ffffffff81000100 t early
ffffffff81000180 D data
ffffffff81000200 T panic
ffffffff81000300 t module_code\t[a_module]
"""
TEXT = 0xFFFF_FFFF_8100_0000


def vmlinux(names=(("panic", TEXT + 0x200, 0x80, 2), ("main", TEXT, 0x100, 2)), bits=64, strings=None):
    """An ELF file with a text section (1), the symbol table (2), its strings (3) and one segment."""
    table = b"\0"
    wide = bits == 64
    entries = struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0) if wide else bytes(16)
    for name, value, size, kind in names:
        at = len(table)
        table += name.encode() + b"\0"
        entries += (
            struct.pack("<IBBHQQ", at, 0x10 | kind, 0, 1, value, size)
            if wide
            else struct.pack("<IIIBBH", at, value, size, 0x10 | kind, 0, 1)
        )
    table = table if strings is None else strings
    header, program, section = (64, 56, 64) if wide else (52, 32, 40)
    symbols_at = header + program
    strings_at = symbols_at + len(entries)
    sections_at = strings_at + len(table)
    row = "<IIQQQQIIQQ" if wide else "<IIIIIIIIII"
    sections = b"".join(
        struct.pack(row, *fields)
        for fields in (
            (0,) * 10,
            (0, 1, 6, TEXT & (1 << bits) - 1, 0, 0, 0, 0, 0, 0),
            (0, 2, 0, 0, symbols_at, len(entries), 3, 0, 0, 0),
            (0, 3, 0, 0, strings_at, len(table), 0, 0, 0, 0),
        )
    )
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1]).ljust(12, b"\0")
    word = "Q" if wide else "I"
    head = ident + struct.pack(
        f"<HHI{word * 3}IHHHHHH", 2, 62, 1, 0, header, sections_at, 0, header, program, 1, section, 4, 0
    )
    vaddr, paddr = TEXT & (1 << bits) - 1, 0x1000000
    load = (
        struct.pack("<IIQQQQQQ", 1, 5, 0, vaddr, paddr, 0, 0, 0)
        if wide
        else struct.pack("<8I", 1, 0, vaddr, paddr, 0, 0, 5, 0)
    )
    return head + load + entries + table + sections


@pytest.fixture
def file(tmp_path):
    def write(data, name="vmlinux"):
        path = tmp_path / name
        path.write_bytes(data)
        return str(path)

    return write


@pytest.mark.parametrize("bits", [32, 64])
def test_an_elf_files_functions(file, bits):
    base = TEXT if bits == 64 else 0xC100_0000
    names = (("panic", base + 0x200, 0x80, 2), ("main", base, 0x100, 2), ("table", base + 0x300, 8, 1))
    found = read(file(vmlinux(names, bits)))
    assert len(found) == 2, "data is none"
    assert found.describe(base + 0x210) == "panic+0x10/0x80"
    assert found.describe(base) == "main+0x0/0x100"
    for nowhere in (base - 1, base + 0x100, base + 0x280, base + 0x300, 0, 1 << 64):
        assert found.describe(nowhere) == ""


def test_early_code_runs_at_physical_addresses(file):
    assert read(file(vmlinux())).describe(0x1000210) == "panic+0x10/0x80"
    assert read(file(MAP)).describe(0x1000210) == "panic+0x10/0x100"


def test_a_moved_kernel(file):
    found = read(file(vmlinux()))
    found.slide = 0x1C000000
    assert found.describe(TEXT + 0x1C000210) == "panic+0x10/0x80"


def test_a_system_map(file):
    found = read(file(MAP, "System.map"))
    assert found.describe(TEXT + 0x110) == "early+0x10/0x100", "up to the next function: data is none"
    assert found.describe(TEXT + 0x300) == "module_code+0x0/0x100000"
    assert found.describe(TEXT + 0x300 + (1 << 20)) == ""
    assert found.describe(0) == ""


def test_of_two_names_the_one_with_a_size_counts():
    found = Symbols("x", [(0x1000, 0, b"label"), (0x1000, 0x20, b"function"), (0x1000, 0, b"other")])
    assert found.describe(0x1008) == "function+0x8/0x20"


def test_a_name_may_be_anything():
    assert Symbols("x", [(0, 8, b"\x1b[2J\xff")]).describe(0) == "?[2J??+0x0/0x8".replace("??", "\ufffd")
    assert len(Symbols("x", [(0, 8, b"n" * 10**6)]).describe(0)) < 300


@pytest.mark.needs("gcc")
def test_what_a_compiler_and_nm_make(tmp_path):
    source = tmp_path / "a.c"
    source.write_text("int helper(int n) { return n + 1; }\nint _start(void) { return helper(2); }\n")
    program = tmp_path / "a.out"
    subprocess.run(["gcc", "-nostdlib", "-static", "-O0", "-o", program, source], check=True, timeout=60)
    nm = shutil.which("nm")
    assert nm
    listing = subprocess.run([nm, "-n", program], check=True, capture_output=True, timeout=60).stdout
    (tmp_path / "map").write_bytes(listing)
    address = next(int(line.split()[0], 16) for line in listing.splitlines() if line.endswith(b" helper"))
    assert read(str(program)).describe(address + 4).startswith("helper+0x4/0x")
    assert read(str(tmp_path / "map")).describe(address + 4).startswith("helper+0x4/0x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"hello\n", "has no symbols at offset 0x0 .*System.map"),
        (b"\x7fELF", "is no ELF file for this machine"),
        (b"\x7fELF\x02\x02" + bytes(100), "is no ELF file"),
        (patched(vmlinux(), 60, "<H", 0), "has no symbol table .*not stripped"),
        (patched(vmlinux(), 58, "<H", 8), "has no symbol table"),
        (patched(vmlinux(), 40, "<Q", 1 << 63), "section headers beyond its end"),
        (vmlinux()[:-1], "section headers beyond its end"),
    ],
)
def test_files_without_symbols(file, data, message):
    with pytest.raises(LoadError, match=message):
        read(file(data))


@pytest.mark.parametrize(
    ("section", "field", "format", "value", "message"),
    [
        (2, 4, "<I", 1, "has no symbol table"),
        (2, 24, "<Q", 1 << 62, "symbol table beyond its end"),
        (2, 32, "<Q", 1 << 62, "symbols .*at most"),
        (2, 32, "<Q", 24 * 3_000_000, "symbol table beyond"),
        (2, 40, "<I", 99, "names section 99"),
        (2, 40, "<I", 1, "names section 1"),
        (3, 32, "<Q", 1 << 62, "string table beyond"),
    ],
)
def test_lies_about_the_tables(file, section, field, format, value, message):
    image = vmlinux()
    at = int.from_bytes(image[40:48], "little") + 64 * section + field
    with pytest.raises(LoadError, match=message):
        read(file(patched(image, at, format, value)))


def test_strings_without_an_end_and_names_beyond_them(file):
    assert read(file(vmlinux(strings=b"\0pan"))).describe(TEXT + 0x200) == "pan+0x0/0x80"
    assert len(read(file(vmlinux(strings=b"\0")))) == 0


@settings(max_examples=200)
@given(st.data())
def test_no_bytes_do_more_than_a_load_error(data):
    image = bytearray(vmlinux())
    for _ in range(data.draw(st.integers(1, 8))):
        image[data.draw(st.integers(4, len(image) - 1))] = data.draw(st.integers(0, 255))
    try:
        symbols._read_elf(BufferImage("x", bytes(image))).describe(TEXT)
    except LoadError:
        pass


@given(st.binary(min_size=1, max_size=300))
def test_no_text_does_more_than_a_load_error(data):
    image = BufferImage("x", MAP + data)
    symbols._check_map(image)
    symbols._read_map(image).describe(TEXT)


def test_a_required_source_is_judged_at_once_and_another_is_silent(file):
    with pytest.raises(LoadError, match="has no symbols"):
        Source(file(b"nothing\n"), required=True)
    with pytest.raises(LoadError, match="No such file"):
        Source("/nonexistent", required=True)
    assert Source(file(MAP), required=True).get() is not None
    stripped = file(patched(vmlinux(), 60, "<H", 0))
    with pytest.raises(LoadError, match="no symbol table"):
        Source(stripped, required=True)
    assert Source(stripped, required=False).get() is None
