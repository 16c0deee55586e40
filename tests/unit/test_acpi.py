"""ACPI and MP tables: structure, checksums, and what the reference disassembler makes of them."""

import shutil
import struct
import subprocess

import pytest

from pyvmm import layout
from pyvmm.boot import mptable
from pyvmm.boot.acpi import aml
from pyvmm.boot.acpi.dsdt import dsdt
from pyvmm.boot.acpi.tables import acpi_tables
from pyvmm.boot.firmware import put_tables
from pyvmm.boot.placement import Placement
from pyvmm.errors import LoadError
from pyvmm.memory import GuestMemory

GPA = layout.ACPI_TABLES
MMIO = [(0xD0000000, 0x1000, 5), (0xD0001000, 0x1000, 6)]


def follow(block, gpa=GPA):
    """The tables by signature, found as a kernel finds them: RSDP, XSDT, FADT, and from there DSDT and FACS."""

    def at(address):
        offset = address - gpa
        (length,) = struct.unpack_from("<I", block, offset + 4)
        return block[offset : offset + length]

    assert block[:8] == b"RSD PTR " and sum(block[:20]) & 0xFF == 0 and sum(block[:36]) & 0xFF == 0
    length, xsdt = struct.unpack_from("<IQ", block, 20)
    assert (block[15], length) == (2, 36)
    tables = {"XSDT": at(xsdt)}
    for (address,) in struct.iter_unpack("<Q", tables["XSDT"][36:]):
        table = at(address)
        tables[table[:4].decode()] = table
    facs, definitions = struct.unpack_from("<II", tables["FACP"], 36)
    assert struct.unpack_from("<Q", tables["FACP"], 140) == (definitions,)
    tables["DSDT"], tables["FACS"] = at(definitions), at(facs)
    assert facs % 64 == 0
    return tables


@pytest.mark.parametrize("cpus", [1, 2, 16, 255])
def test_every_table_is_found_and_adds_up(cpus):
    tables = follow(acpi_tables(GPA, cpus, MMIO))
    assert set(tables) == {"XSDT", "FACP", "APIC", "DSDT", "FACS"}
    for name, table in tables.items():
        assert table[:4] == name.encode()
        if name != "FACS":
            assert sum(table) & 0xFF == 0, name
    madt = tables["APIC"]
    kinds = []
    at = 44
    while at < len(madt):
        kinds.append(madt[at])
        at += madt[at + 1]
    assert at == len(madt)
    assert kinds.count(0) == cpus and kinds.count(1) == 1


def test_fadt_points_at_the_registers_there_are():
    fadt = follow(acpi_tables(GPA, 1))["FACP"]
    assert len(fadt) == 276
    assert struct.unpack_from("<H", fadt, 46) == (layout.SCI_IRQ,)
    event, control, timer = struct.unpack_from("<I4xI8xI", fadt, 56)
    assert (event, control, timer) == (0x600, 0x604, 0x608)
    assert fadt[88], fadt[89] == (4, 2)
    for offset, port, bits in ((116, 0xCF9, 8), (148, event, 32), (172, control, 16), (208, timer, 32)):
        assert struct.unpack_from("<BBBBQ", fadt, offset)[:2] == (1, bits)
        assert struct.unpack_from("<Q", fadt, offset + 4) == (port,)
    assert fadt[128] == 0x06
    (flags,) = struct.unpack_from("<I", fadt, 112)
    assert flags & 1 << 10, "the reset register is supported"
    assert not flags & 1 << 4, "the power button is fixed hardware"


@pytest.mark.needs("iasl")
@pytest.mark.parametrize("cpus", [1, 4])
def test_the_reference_disassembler_agrees(cpus, tmp_path):
    source = {}
    for name, table in follow(acpi_tables(GPA, cpus, MMIO)).items():
        path = tmp_path / f"{name.lower()}.dat"
        path.write_bytes(table)
        done = subprocess.run(["iasl", "-d", path], capture_output=True, text=True, timeout=60, cwd=tmp_path)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        for complaint in ("Error", "Warning", "Invalid", "incorrect", "Unknown", "too long", "too short"):
            assert complaint not in said, said
        source[name] = path.with_suffix(".dsl").read_text()
        assert "Invalid" not in source[name] and "Incorrect" not in source[name]
    for text in ('"LNRO0005"', 'EisaId ("PNP0501")', "_S5", '"QEMU0001"', "Edge, ActiveHigh, Exclusive"):
        assert text in source["DSDT"], source["DSDT"]
    # And back: what it wrote down compiles to the same byte code.
    done = subprocess.run(["iasl", "-p", "again", "dsdt.dsl"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0 and " 0 Errors" in done.stdout, done.stdout
    assert (tmp_path / "again.aml").read_bytes()[36:] == dsdt(MMIO)


@pytest.mark.parametrize("length", [0, 1, 61, 62, 63, 64, 4092, 4093, 4094, 1 << 19, (1 << 20) - 4])
def test_package_length_counts_itself(length):
    encoded = aml.package_length(length)
    lead = encoded[0]
    extra = lead >> 6
    assert len(encoded) == 1 + extra
    total = lead & 0x3F if extra == 0 else lead & 0xF | int.from_bytes(encoded[1:], "little") << 4
    assert total == length + len(encoded)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, "00"), (1, "01"), (2, "0a02"), (0x1FF, "0bff01"), (0x12345678, "0c78563412"), (1 << 32, "0e0000000001000000")],
)
def test_integers_take_the_shortest_form(value, encoded):
    assert aml.integer(value).hex() == encoded


def test_names_and_ids():
    assert aml.name_path("\\_SB.COM1") == b"\\\x2e_SB_COM1"
    assert aml.eisa_id("PNP0501").hex() == "0c41d00501"
    for bad in ("TOOLONG", "A.B.C"):
        with pytest.raises(ValueError, match="is no name"):
            aml.name_path(bad)


def entries_of(table):
    """(type, bytes) of the entries of an MP configuration table."""
    at, found = 44, []
    while at < len(table):
        length = 20 if table[at] == 0 else 8
        found.append((table[at], table[at : at + length]))
        at += length
    return found


@pytest.mark.parametrize("cpus", [1, 2, 40, 41, 255])
def test_mp_table(cpus):
    memory = GuestMemory.allocate([(0, 2 << 20)])
    placement = Placement(memory, "kernel")
    assert put_tables(placement, cpus, MMIO) == layout.ACPI_TABLES
    assert memory.read_u16(0x40E) << 4 == 0x9FC00
    assert memory.read_u16(0x413) == 639
    assert memory.read(0xFFFF0, 3) == b"\xba\xf9\x0c", "the reset vector leads to port 0xcf9"
    pointer = memory.read(0x9FC00, 16)
    assert pointer[:4] == b"_MP_" and sum(pointer) & 0xFF == 0 and pointer[8] == 1
    (at,) = struct.unpack_from("<I", pointer, 4)
    (length,) = struct.unpack("<H", memory.read(at + 4, 2))
    table = memory.read(at, length)
    assert table[:4] == b"PCMP" and sum(table) & 0xFF == 0
    assert at + length <= (0xA0000 if cpus <= 40 else 0x100000)
    entries = entries_of(table)
    assert struct.unpack_from("<H", table, 34) == (len(entries),)
    processors = [entry for kind, entry in entries if kind == 0]
    assert [entry[1] for entry in processors] == list(range(cpus))
    assert [entry[3] for entry in processors] == [3] + [1] * (cpus - 1), "enabled, and one is the boot processor"
    wires = {entry[5]: struct.unpack_from("<H", entry, 2)[0] for kind, entry in entries if kind == 3}
    assert set(wires) == set(range(16)) - {2}
    assert wires[9] == 0b1101 and set(wires.values()) == {0, 0b1101}, "the SCI is a level, all else edges"
    memory.close()


def test_constants_of_the_mp_table_have_their_place():
    assert len(mptable.floating_pointer(0x12345678)) == 16
    assert mptable.configuration_table(1)[36:40] == (0xFEE00000).to_bytes(4, "little")


def test_a_kernel_that_lies_where_the_tables_go_is_refused():
    memory = GuestMemory.allocate([(0, 2 << 20)])
    placement = Placement(memory, "kernel")
    placement.claim(0xE0000, 16, "segment 0")
    with pytest.raises(LoadError, match="ACPI tables .* overlaps segment 0"):
        put_tables(placement, 1)
    memory.close()


def test_iasl_is_what_the_requirement_means():
    from tests.support import needs

    assert bool(needs.missing("iasl")) == (shutil.which("iasl") is None)
