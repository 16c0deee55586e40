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
SLOTS = range(1, 21)


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
    assert struct.unpack_from("<I", fadt, 80) == (0x60C,) and fadt[92] == 2
    for offset, port, bits in (
        *((116, 0xCF9, 8), (148, event, 32), (172, control, 16), (208, timer, 32)),
        (220, 0x60C, 16),
    ):
        assert struct.unpack_from("<BBBBQ", fadt, offset)[:2] == (1, bits)
        assert struct.unpack_from("<Q", fadt, offset + 4) == (port,)
    assert fadt[128] == 0x06
    (flags,) = struct.unpack_from("<I", fadt, 112)
    assert flags & 1 << 10, "the reset register is supported"
    assert not flags & 1 << 4, "the power button is fixed hardware"


@pytest.mark.needs("iasl")
@pytest.mark.parametrize(
    ("cpus", "mmio", "pci"), [(1, MMIO, None), (4, MMIO, SLOTS), (1, (), range(1, 32)), (1, (), ())]
)
def test_the_reference_disassembler_agrees(cpus, mmio, pci, tmp_path):
    source = {}
    for name, table in follow(acpi_tables(GPA, cpus, mmio, pci)).items():
        path = tmp_path / f"{name.lower()}.dat"
        path.write_bytes(table)
        done = subprocess.run(["iasl", "-d", path], capture_output=True, text=True, timeout=60, cwd=tmp_path)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        for complaint in ("Error", "Warning", "Invalid", "incorrect", "Unknown", "too long", "too short"):
            assert complaint not in said, said
        source[name] = path.with_suffix(".dsl").read_text()
        assert "Invalid" not in source[name] and "Incorrect" not in source[name]
    expected = ['EisaId ("PNP0501")', "_S5", '"QEMU0001"']
    expected += ['"VM_Gen_Counter"', "ADDR", "Method (_E00", "Notify (\\_SB.VGEN, 0x80)"]
    if mmio:
        expected += ['"LNRO0005"', "Edge, ActiveHigh, Exclusive"]
    if pci is not None:
        expected += ['EisaId ("PNP0A03")', "WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode,"]
        expected += ["DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,"]
        expected += ["0xE0000000,         // Range Minimum", "0xFEBFFFFF,         // Range Maximum"]
        expected += ["0x1EC00000,         // Length"]
    for text in expected:
        assert text in source["DSDT"], source["DSDT"]
    assert ("PCI0" in source["DSDT"]) == (pci is not None), "without PCI nothing speaks of it"
    # And back: what it wrote down compiles to the same byte code.
    done = subprocess.run(["iasl", "-p", "again", "dsdt.dsl"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0 and " 0 Errors" in done.stdout, done.stdout
    assert (tmp_path / "again.aml").read_bytes()[36:] == dsdt(mmio, pci)


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


@pytest.mark.parametrize("pci", [None, (), SLOTS, range(1, 32)])
@pytest.mark.parametrize("cpus", [1, 2, 24, 40, 41, 255])
def test_mp_table(cpus, pci):
    memory = GuestMemory.allocate([(0, 2 << 20)])
    placement = Placement(memory, "kernel")
    assert put_tables(placement, cpus, MMIO, pci) == layout.ACPI_TABLES
    assert memory.read_u16(0x40E) << 4 == 0x9FC00
    assert memory.read_u16(0x413) == 639
    assert memory.read(0xFFFF0, 3) == b"\xba\xf9\x0c", "the reset vector leads to port 0xcf9"
    pointer = memory.read(0x9FC00, 16)
    assert pointer[:4] == b"_MP_" and sum(pointer) & 0xFF == 0 and pointer[8] == 1
    (at,) = struct.unpack_from("<I", pointer, 4)
    (length,) = struct.unpack("<H", memory.read(at + 4, 2))
    table = memory.read(at, length)
    assert table[:4] == b"PCMP" and sum(table) & 0xFF == 0
    assert at == 0x9FC10 if length <= 1024 - 16 else at == 0xF0000 and at + length <= 0xFFFF0
    assert (at == 0x9FC10) == (cpus <= {None: 40, 0: 40, 20: 31, 31: 27}[None if pci is None else len(pci)])
    entries = entries_of(table)
    assert struct.unpack_from("<H", table, 34) == (len(entries),)
    processors = [entry for kind, entry in entries if kind == 0]
    assert [entry[1] for entry in processors] == list(range(cpus))
    assert [entry[3] for entry in processors] == [3] + [1] * (cpus - 1), "enabled, and one is the boot processor"
    buses = {entry[2:8]: entry[1] for kind, entry in entries if kind == 1}
    assert buses == ({b"ISA   ": 0} if pci is None else {b"PCI   ": 0, b"ISA   ": 1})
    lines = [entry for kind, entry in entries if kind == 3]
    for kind, entry in entries:
        assert kind not in (3, 4) or entry[4] in buses.values()
    isa = [entry for entry in lines if entry[4] == buses[b"ISA   "]]
    assert all(entry[5] == entry[7] and entry[6] == cpus for entry in isa)
    wires = {entry[5]: struct.unpack_from("<H", entry, 2)[0] for entry in isa}
    assert set(wires) == set(range(16)) - {2}
    assert wires[9] == 0b1101 and set(wires.values()) == {0, 0b1101}, "the SCI is a level, all else edges"
    intx = [entry for entry in lines if entry not in isa]
    assert [entry[5] for entry in intx] == [slot << 2 for slot in pci or ()], "INTA# of every slot"
    assert [entry[7] for entry in intx] == [16 + slot % 4 for slot in pci or ()]
    assert all(entry[1:4] == b"\0\0\0" and entry[6] == cpus for entry in intx), "as PCI has them: low, level"
    memory.close()


def test_dsdt_and_mp_table_agree_on_where_pci_interrupts_go():
    """And _PRT has every device's INTA#, with a GSI, not a link device (ACPI 6.5, 6.2.13)."""
    body = dsdt((), SLOTS)
    for slot in SLOTS:
        address = (slot << 16 | 0xFFFF).to_bytes(4, "little")
        assert b"\x12\x0b\x04\x0c" + address + b"\0\0\x0a" + bytes([layout.pci_gsi(slot)]) in body
    assert {layout.pci_gsi(slot, pin) for slot in SLOTS for pin in range(4)} == {16, 17, 18, 19}
    assert [layout.pci_gsi(1, pin) for pin in range(4)] == [17, 18, 19, 16]


def test_msi_is_not_forbidden():
    (flags,) = struct.unpack_from("<H", follow(acpi_tables(GPA, 1, (), SLOTS))["FACP"], 109)
    assert not flags & 1 << 3, "MSI not supported: ACPI 6.5, table 5.10"


def test_the_window_for_bars_is_nobody_elses():
    assert layout.PCI_WINDOW % (1 << 29) == 0 and layout.PCI_WINDOW_END == layout.IOAPIC
    assert layout.VIRTIO_MMIO + 18 * layout.VIRTIO_MMIO_SIZE <= layout.PCI_WINDOW
    ports = range(layout.PCI_CONFIG_PORT, layout.PCI_CONFIG_PORT + layout.PCI_CONFIG_PORTS)
    assert layout.RESET_CONTROL_PORT in ports


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
