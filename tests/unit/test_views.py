"""The views of a VM that stands still: what each says, and that nothing in a guest's memory or registers stops it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm import cpubits, layout
from pyvmm.boot.segments import Segment
from pyvmm.debug import views
from pyvmm.debug.views import contents, locate, look, look_data, tables
from pyvmm.debug.views.command import number
from pyvmm.errors import PyvmmError, UsageError
from pyvmm.kvm import msrs
from pyvmm.kvm.exits import Pio
from pyvmm.machine import Machine
from pyvmm.memory import GuestMemory
from pyvmm.virtio.block import VirtioBlock
from pyvmm.virtio.featurenames import feature_names
from pyvmm.virtio.mmio import VirtioMmio
from pyvmm.virtio.spec import BLK_F_FLUSH, F_VERSION_1, ID_BLOCK
from tests.support.fakevcpu import CODE, GDT, RAM, TABLES, FakeVcpu, machine
from tests.support.memorydisk import CAPACITY, MemoryDisk

LONG, PROTECTED, REAL = "long", "protected", "real"
SYMBOLS = {"start": CODE, "handler": CODE + 0x40}


def symbol(address: int) -> str:
    for name, at in sorted(SYMBOLS.items(), key=lambda one: -one[1]):
        if at <= address < at + 0x40:
            return f"{name}+{address - at:#x}/0x40"
    return ""


def subject(vcpu: FakeVcpu, memory: GuestMemory, *, history: tuple[Pio, ...] = ()) -> SimpleNamespace:
    """A VM for views, with a machine whose devices nobody has used."""
    return SimpleNamespace(
        vcpus=[vcpu],
        memory=memory,
        machine=Machine([(0, RAM)], lambda *_: None, lambda _: None, lambda _: None),
        loaded=SimpleNamespace(pieces=[SimpleNamespace(gpa=TABLES, length=0x6000, what="page tables")]),
        loops=[SimpleNamespace(history=history)],
        stats=SimpleNamespace(exits={"IO": len(history)}, completed={"popcnt": 2}, unclaimed=3),
        virtio_devices=(),
        slots=(),
        symbol=symbol,
        address_of=SYMBOLS.get,
    )


@pytest.fixture
def vm() -> SimpleNamespace:
    return subject(*machine(b"\x48\x31\xc0\xe8\x38\x00\x00\x00\xf4"))


def text(vm: SimpleNamespace, *words: str, **how: object) -> str:
    return "\n".join(look(vm, words, **how))  # type: ignore[arg-type]


# --- Registers -------------------------------------------------------------------------------------------------------


def test_registers_are_shown_by_name_and_bit_by_bit(vm):
    vm.vcpus[0].msrs = {msrs.EFER: 0x501, msrs.LSTAR: CODE + 0x40, msrs.STAR: 0x0023_0010 << 32}
    shown = text(vm, "registers")
    for part in (
        "vcpu 0: long mode (64-bit code), 4-level paging, CPL 0, runnable",
        "rip 0000000000100000  start+0x0/0x40",
        "cr0  0x80000033  PE MP ET NE PG",
        "cs  0010  base 00000000 limit ffffffff  code, execute/read, 64-bit, DPL 0",
        "cr3 as a pointer: table at 0x1000",
        "apic_base as a pointer: registers at 0xfee00000, BSP enabled",
        "dr0 0x1000",
        "SYSCALL loads CS 0x10, SYSRET 0x33",
        f"{CODE + 0x40:#018x} <handler+0x0/0x40>",
    ):
        assert part in shown
    assert "xmm" not in shown


def test_a_refused_msr_hides_no_other(vm):
    given = [msrs.IA32_APIC_BASE, msrs.EFER, msrs.KERNEL_GS_BASE, msrs.IA32_TSC]
    vm.vcpus[0].msrs = dict.fromkeys(given, 0x900)
    shown = text(vm, "registers")
    for index in given:
        assert msrs.name(index) in shown
    assert "STAR " not in shown


def test_the_registers_of_fpu_and_sse_are_shown_on_request(vm):
    shown = text(vm, "registers", "all")
    assert "xmm15 0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f" in shown
    assert "st7   07070707070707070707" in shown
    assert "mxcsr 0x1f80  IM DM ZM OM UM PM" in shown


@pytest.mark.parametrize(
    ("broken", "named"), [("regs", "registers"), ("debugregs", "debug registers"), ("msrs", "MSRs"), ("fpu", "x87")]
)
def test_a_part_that_kvm_does_not_give_is_left_out_with_its_reason(vm, broken, named):
    vm.vcpus[0].broken = (broken,)
    shown = text(vm, "registers", "all")
    assert f"{named}" in shown and "could not be read" in shown and f"KVM_GET_{broken.upper()}" in shown
    json.dumps(look_data(vm, ["registers", "all"]))


def test_a_vcpu_that_was_not_started_has_nothing_to_show(vm):
    vm.vcpus[0].mp_state = 1
    assert views.registers(vm, 0) == ["vcpu 0: long mode (64-bit code), 4-level paging, CPL 0, waiting for INIT"]


# --- Paging ----------------------------------------------------------------------------------------------------------


def test_a_walk_is_drawn_level_by_level(vm):
    assert views.page_walk(vm, 0, 0x100123) == [
        "linear address 0x100123, vCPU 0: 4-level paging",
        "  bits 47-39 = PML4E 0, bits 38-30 = PDPTE 0, bits 29-21 = PDE 0, bits 20-0 = offset 0x100123",
        "  CR3 0x1000",
        "  `- PML4E [  0] at 0x1000 = 0x2003  P W",
        "     `- PDPTE [  0] at 0x2000 = 0x3003  P W",
        "        `- PDE   [  0] at 0x3000 = 0x83  P W PS",
        "           `- page of 2 MiB, writable, supervisor, executable; gpa 0x100123, RAM",
    ]


def test_a_walk_says_where_it_ends_and_what_fault_that_is(vm):
    vm.memory.write_u64(TABLES + 0x2000, 0x4003)
    vm.memory.write_u64(0x4000 + 8, 0xDEAD_BEE0)
    end = views.page_walk(vm, 0, 0x1000)[-2:]
    assert end == [
        " " * 14 + "`- PTE not present",
        " " * 14 + "`- an access is a page fault: error code 0x0, + 2 W, + 4 U",
    ]
    vm.memory.write_u64(0x4000 + 8, 0x5003 | 1 << 63)
    assert "error code 0x9 (P RSVD)" in text(vm, "paging", "0x1000")
    assert "not canonical" in text(vm, "paging", "0x8000000000000000")
    vm.memory.write_u64(TABLES, 0x7FFF_F003)
    assert "the table of PDPTEs at 0x7ffff000 is not in RAM" in text(vm, "paging", "0x1000")


def test_a_walk_names_what_answers_at_its_end(vm):
    device = VirtioBlock(MemoryDisk(), name="blk0")
    vm.machine.mmio.attach(layout.VIRTIO_MMIO, layout.PAGE, VirtioMmio(device, lambda: None))
    assert text(vm, "paging", "0xd0000010").endswith("gpa 0xd0000010, blk0 + 0x10")
    assert text(vm, "paging", "0xe0000000").endswith("which has nothing there")


@pytest.mark.parametrize(
    ("cr4", "efer", "width", "entries", "expected"),
    [
        (0, 0, 4, [(0x10000, 0x11067), (0x11000 + 5 * 4, 0x9067)], "PTE   [  5] at 0x11014 = 0x9067  P W U A D"),
        (cpubits.CR4_PSE, 0, 4, [(0x10000, 0x4000E7)], "PDE   [  0] at 0x10000 = 0x4000e7  P W U A D PS"),
        (
            cpubits.CR4_PAE,
            0,
            8,
            [(0x10000, 0x11001), (0x11000, 0x12067), (0x12000 + 5 * 8, 0x90E7)],
            "PTE   [  5] at 0x12028 = 0x90e7  P W U A D PAT",
        ),
        (
            cpubits.CR4_PAE | cpubits.CR4_LA57,
            cpubits.EFER_LMA | cpubits.EFER_LME,
            8,
            [(0x10000, 0x11003), (0x11000, 0x12003), (0x12000, 0x400000_0083 & ~0x3FFFFFFF | 0x83)],
            "PDPTE [  0] at 0x12000 = 0x4000000083  P W PS",
        ),
    ],
    ids=["32-bit", "4 MiB", "PAE", "5-level"],
)
def test_every_kind_of_paging_is_drawn(cr4, efer, width, entries, expected):
    vcpu, memory = machine(mode=LONG)
    vcpu.state.cr0, vcpu.state.cr3 = cpubits.CR0_PE | cpubits.CR0_PG, 0x10000
    vcpu.state.cr4, vcpu.state.efer = cr4, efer
    for gpa, value in entries:
        (memory.write_u32 if width == 4 else memory.write_u64)(gpa, value)
    shown = views.page_walk(subject(vcpu, memory), 0, 0x5010)
    assert any(line.endswith(expected) for line in shown), shown
    assert "gpa 0x" in shown[-1]


def test_without_paging_an_address_is_its_own(vm):
    vcpu, memory = machine(mode=PROTECTED)
    shown = views.page_walk(subject(vcpu, memory), 0, 0x1234)
    assert shown == ["linear address 0x1234, vCPU 0: no paging (CR0.PG is clear)", "  `- gpa 0x1234, RAM"]


# --- Tables ----------------------------------------------------------------------------------------------------------


def idt(vm: SimpleNamespace, *gates: int, at: int = 0x9000, size: int = 16) -> None:
    for vector, gate in enumerate(gates):
        vm.memory.write(at + vector * size, gate.to_bytes(size, "little"))
    vm.vcpus[0].state.idt_base, vm.vcpus[0].state.idt_limit = at, len(gates) * size - 1


def gate(offset: int, selector: int = 0x10, kind: int = 14, dpl: int = 0, ist: int = 0, present: int = 1) -> int:
    low = offset & 0xFFFF | selector << 16 | ist << 32 | kind << 40 | dpl << 45 | present << 47
    return low | (offset >> 16 & 0xFFFF) << 48 | offset >> 32 << 64


def test_segment_descriptors_are_decoded_with_who_uses_them(vm):
    shown = views.descriptor_tables(vm, 0)
    assert shown[:4] == [
        "GDT: base 0x500 limit 0x2f",
        "  0x0010  base 0x0 limit 0xffffffff  code, execute/read, 64-bit, DPL 0  <- CS",
        "  0x0018  base 0x0 limit 0xffffffff  data, read/write, 32-bit, DPL 0  <- DS ES FS GS SS",
        "  4 empty",
    ]


def test_a_tss_of_64_bits_takes_two_slots(vm):
    tss = Segment(0x20, 0x5000, 0x67, 9, s=0).descriptor()
    vm.memory.write(GDT + 0x20, tss.to_bytes(8, "little") + (0xFFFF8000).to_bytes(8, "little"))
    assert "  0x0020  base 0xffff800000005000 limit 0x67  TSS, DPL 0  <- TR" in views.descriptor_tables(vm, 0)


def test_gates_are_decoded_with_their_targets(vm):
    idt(vm, gate(CODE + 0x41, ist=1), 0, gate(0xFFFF_8000_1234_5678, kind=15, dpl=3), gate(0, kind=5, present=0))
    shown = views.descriptor_tables(vm, 0)
    at = shown.index("IDT: base 0x9000 limit 0x3f")
    assert [line.split(maxsplit=1)[0] for line in shown[at + 1 :]] == ["0", "2", "3", "1"]
    assert shown[at + 1].endswith("0x10:0x100041 <handler+0x1/0x40>  interrupt gate, DPL 0, IST 1")
    assert shown[at + 2].endswith("0x10:0xffff800012345678  trap gate, DPL 3")
    assert shown[at + 3].endswith("no gate: task gate, DPL 0, not present")
    data = look_data(vm, ["tables"])["idt"]["entries"]
    assert (data[0]["symbol"], data[0]["ist"], data[1]["vector"]) == ("handler+0x1/0x40", 1, 2)
    assert data[0]["name"] == "#DE divide error" and "NMI" in data[1]["name"]


def test_real_mode_has_a_table_of_vectors():
    vcpu, memory = machine(mode=REAL)
    memory.write(4 * 0x10, b"\x34\x12\x00\xf0")
    shown = views.descriptor_tables(subject(vcpu, memory), 0)
    assert shown[1].split() == ["16", "#MF", "x87", "error", "f000:1234"]
    assert shown[2] == "  255 empty"


def test_a_table_outside_ram_is_said_to_be(vm):
    vm.vcpus[0].state.gdt_base, vm.vcpus[0].state.gdt_limit = RAM - 8, 0xFFFF
    shown = text(vm, "tables")
    assert f"from {RAM:#x} on it is not in mapped RAM" in shown


def test_a_table_without_an_entry_is_said_to_have_none(vm):
    assert text(vm, "tables").endswith("IDT: base 0x0 limit 0x0\n  no entry fits")


def test_a_full_gdt_is_shown_in_part(vm):
    vm.memory.write(0x10000, Segment(0, 0, 0xFFF, 3).descriptor().to_bytes(8, "little") * 8192)
    vm.vcpus[0].state.gdt_base, vm.vcpus[0].state.gdt_limit = 0x10000, 0xFFFF
    shown = views.descriptor_tables(vm, 0)
    assert f"  ... and {8192 - tables.MOST} more" in shown and len(shown) < tables.MOST + 10


# --- Memory and devices ----------------------------------------------------------------------------------------------


def test_the_memory_map_has_no_gap_and_no_overlap(vm):
    data = look_data(vm, ["memory"])["memory"]
    places = [(int(one["start"], 16), one["length"]) for one in data if one["kind"] != "loaded"]
    at = 0
    for start, length in places:
        assert start == at
        at += length
    assert at == layout.HOLE_END
    shown = text(vm, "memory")
    assert "page tables" in shown and "IOAPIC (KVM's)" in shown
    assert "0x03f8-0x03ff 8 serial" in " ".join(shown.split()) and "2M  RAM, memory slot 0" in shown


def test_ram_above_the_hole_is_on_the_map():
    memory = GuestMemory.allocate([(0, RAM), (layout.HOLE_END, RAM)])
    vcpu, _ = machine()
    data = look_data(subject(vcpu, memory), ["memory"])["memory"]
    assert [int(one["start"], 16) for one in data if one["kind"] == "RAM"] == [0, layout.HOLE_END]


def test_looking_at_devices_changes_none(vm):
    before = [device for *_, device in vm.machine.ports.placed()]
    text(vm, "devices")
    assert [device for *_, device in vm.machine.ports.placed()] == before, "a device was made"
    serial = vm.machine.serial
    serial.write(1, 1, 0x03)
    serial.write(4, 1, 0x08)
    serial.receive(b"a")
    saved = serial.save()
    shown = text(vm, "devices")
    assert serial.save() == saved
    assert "  LSR 0x61: DR THRE TEMT" in shown and "  IIR 0x04: ID=received-data FIFOS=off" in shown
    assert "  IER 0x03: ERBFI ETBEI" in shown
    assert "rtc at port 0x70-0x71: not used so far" in shown


def test_what_reading_a_register_gives_is_what_is_shown(vm):
    made = [vm.machine.serial, vm.machine.pm, vm.machine.rtc]
    vm.machine.ports.write(0x60, 1, 0x20), vm.machine.ports.write(0x92, 1, 2), vm.machine.ports.read(0xCF9, 1)
    compared = 0
    for base, _, device in vm.machine.ports.placed():
        for register, value in device.peek() if hasattr(device, "peek") else ():
            readable = "r" in register.access and device.register_at(register.offset, False) is register
            if readable and register.name not in ("PM_TMR", "SECONDS"):
                assert vm.machine.ports.read(base + register.offset, register.width) == value, register
                compared += 1
    assert made and compared > 12


def test_virtio_devices_tell_registers_and_features_by_name(vm):
    device = VirtioBlock(MemoryDisk(), name="blk0")
    device.memory = vm.memory
    vm.machine.mmio.attach(layout.VIRTIO_MMIO, layout.PAGE, VirtioMmio(device, lambda: None))
    vm.virtio_devices = (device,)
    for value in (1, 3):
        device.set_status(value)
    device.set_driver_features(0, 1 << BLK_F_FLUSH)
    device.set_driver_features(1, 1)
    device.set_status(11)
    shown = text(vm, "devices")
    assert "blk0 at gpa 0xd0000000-0xd0000fff" in shown
    assert "Status 0x0000000b: ACKNOWLEDGE DRIVER FEATURES_OK" in shown
    assert "features: FLUSH VERSION_1" in shown
    assert f"configuration: capacity {CAPACITY}, seg_max " in shown and "geometry" not in shown
    assert "offered, not taken:" in shown and "RING_EVENT_IDX" in shown
    assert text(vm, "queues") == "blk0: not live\n  queue 0: not enabled"
    queue = device.queues[0]
    queue.size, queue.descriptors, queue.driver, queue.device = 8, 0x8000, 0x8100, 0x8200
    device.enable_queue(queue)
    device.set_status(15)
    vm.memory.write_u16(0x8102, 3)
    shown = text(vm, "queues")
    assert "queue 0: size 8, 0 in flight, 3 waiting; available 3, used 0" in shown
    assert "descriptors 0x8000, available ring 0x8100, used ring 0x8200" in shown
    assert "no interrupts wanted" not in shown
    vm.memory.write_u16(0x8100, 1)
    assert "used 0, no interrupts wanted" in text(vm, "queues")
    places = {"descriptors": "0x8000", "driver": "0x8100", "device": "0x8200"}
    counts = {"available": 3, "used": 0, "taken": 0, "waiting": 3, "in_flight": 0, "no_interrupt": True}
    queue_found = {"index": 0, "ready": True, "size": 8, "max_size": 256, **places, **counts}
    assert look_data(vm, ["queues"]) == [{"name": "blk0", "live": True, "error": None, "queues": [queue_found]}]
    found = json.loads(json.dumps(look_data(vm, ["devices"])))[-1]
    assert (found["name"], found["space"], found["used"], found["error"]) == ("blk0", "gpa", True, None)
    assert found["places"] == [{"base": "0xd0000000", "length": 4096}]
    assert found["features"] == ["FLUSH", "VERSION_1"] and "RING_EVENT_IDX" in found["offered"]
    assert found["configuration"]["capacity"] == CAPACITY
    status = next(register for register in found["registers"] if register["name"] == "Status")
    assert int(status["value"], 16) == 15 and "DRIVER_OK" in status["fields"] and "4.2.2" in status["spec"]


GATES = {"base", "limit", "entries", "left_out", "empty", "note"}
FIELDS = {
    ("exits",): {"exits", "completed", "unclaimed", "vcpus"},
    ("memory",): {"memory", "ports"},
    ("tables",): {"gdt", "idt"},
    ("disasm",): {"address", "rip", "instructions"},
    ("paging", "0x100000"): {
        *("vcpu", "gva", "symbol", "paging", "cr3", "entries", "gpa", "page"),
        *("writable", "user", "executable", "what", "problem", "error_code"),
    },
}


@pytest.mark.parametrize("words", FIELDS, ids=" ".join)
def test_programs_find_what_a_view_shows_by_these_names(vm, words):
    assert look_data(vm, words).keys() >= FIELDS[words]


def test_what_is_in_lists_for_programs_has_names_too(vm):
    tables_found, walked = look_data(vm, ["tables"]), look_data(vm, ["paging", "0x100000"])
    assert tables_found["gdt"].keys() == tables_found["idt"].keys() == GATES
    entry = {"selector", "base", "limit", "text", "dpl", "present", "used"}
    assert tables_found["gdt"]["entries"][0].keys() == entry
    assert walked["entries"][0] == {
        "level": "PML4E",
        "index": 0,
        "gpa": "0x1000",
        "value": "0x2003",
        "flags": ["P", "W"],
    }
    assert (walked["symbol"], walked["gpa"]) == ("start+0x0/0x40", "0x100000")
    assert look_data(vm, ["disasm"])["instructions"][0] == {
        "address": "0x100000",
        "bytes": "4831c0",
        "text": "xor rax, rax",
        "symbol": "start+0x0/0x40",
    }
    ports = {place["what"]: place for place in look_data(vm, ["memory"])["ports"]}
    assert ports["serial"] == {"start": "0x3f8", "length": 8, "kind": "device", "what": "serial"}


def test_features_have_the_names_of_the_standard():
    assert feature_names(ID_BLOCK, 1 << BLK_F_FLUSH | 1 << F_VERSION_1 | 1 << 63) == ["FLUSH", "VERSION_1", "bit 63"]
    assert feature_names(200, 1 << 5) == ["bit 5"]


def test_exits_are_counted_and_shown_once_where_they_repeat():
    out = Pio(0x3F8, 1, 1, True, b"a")
    vm = subject(*machine(), history=(out, out, Pio(0x3FD, 1, 1, False, b"\x60")))
    assert views.exits(vm) == [
        "exits 3 (IO 3)",
        "instructions that KVM refused and pyvmm completed: popcnt 2",
        "accesses that no device answered: 3",
        "vCPU 0, last exits, oldest first:",
        "  IO out port 0x3f8 size 1 <- 0x61  (2 times)",
        "  IO in port 0x3fd size 1 -> 0x60",
    ]
    counts = {"exits": {"IO": 3}, "completed": {"popcnt": 2}, "unclaimed": 3}
    history = [
        {"text": "IO out port 0x3f8 size 1 <- 0x61", "times": 2},
        {"text": "IO in port 0x3fd size 1 -> 0x60", "times": 1},
    ]
    assert views.exits_data(vm) == {**counts, "vcpus": [history]}


# --- Bytes and instructions ------------------------------------------------------------------------------------------


def test_a_dump_says_what_is_not_in_ram(vm):
    vm.memory.write(RAM - 16, b"0123456789abcdef")
    assert views.hexdump(vm, RAM - 16, 32, physical=True) == [
        "00000000001ffff0  30 31 32 33 34 35 36 37  38 39 61 62 63 64 65 66  |0123456789abcdef|",
        "0000000000200000  not in RAM (16 bytes)",
    ]
    assert views.hexdump(vm, 1 << 40, 16) == ["0000010000000000  not in RAM (16 bytes)"]
    assert look_data(vm, ["dump", "0x1ffff0", "32"], physical=True)["pieces"] == [
        {"address": "0x1ffff0", "gpa": "0x1ffff0", "bytes": b"0123456789abcdef".hex()}
    ]


def test_a_dump_of_linear_addresses_goes_through_the_tables(vm):
    vm.memory.write_u64(TABLES + 0x2000, 0x4003)
    vm.memory.write_u64(0x4000, 0x8003)
    vm.memory.write(0x8000, b"elsewhere")
    shown = views.hexdump(vm, 0, 9)
    assert shown == [
        "0x0: gpa 0x8000",
        "0000000000000000  65 6c 73 65 77 68 65 72  65                       |elsewhere|",
    ]


@pytest.mark.parametrize("length", [0, -1, contents.DUMP_MOST + 1])
def test_a_dump_has_a_limit(vm, length):
    with pytest.raises(UsageError, match="bytes to dump"):
        views.hexdump(vm, 0, length)


def test_the_end_of_the_address_space_is_the_end_of_a_dump(vm):
    assert views.hexdump(vm, (1 << 64) - 16, 64) == ["fffffffffffffff0  not in RAM (16 bytes)"]


def test_instructions_have_symbols_and_their_targets(vm):
    pytest.importorskip("capstone")
    shown = text(vm, "disasm", "rip", "3").splitlines()
    assert shown[0] == "start+0x0/0x40:"
    assert shown[1].split() == ["->", "0x100000:", "48", "31", "c0", "xor", "rax,", "rax"]
    assert shown[2].endswith("call 0x100040 <handler+0x0/0x40>")
    assert look_data(vm, ["disasm"])["instructions"][0]["text"] == "xor rax, rax"


def test_what_is_no_instruction_ends_a_disassembly(vm):
    pytest.importorskip("capstone")
    vm.memory.write(CODE, b"\x90\x0f\xff\xff")
    assert text(vm, "disasm").splitlines()[-1].strip().endswith("no instruction")
    assert text(vm, "disasm", "0x7fffffff").strip() == "0x7fffffff: not in RAM"
    with pytest.raises(UsageError, match="instructions"):
        views.disassembly(vm, 0, contents.INSTRUCTIONS_MOST + 1)


# --- Words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], r"unknown view '' \(expected registers, paging,"),
        (["nothing"], "unknown view 'nothing'"),
        (["memory", "1"], r"memory: 1 arguments \(expected memory\)"),
        (["dump"], r"dump: 0 arguments \(expected dump ADDR \[LEN\]\)"),
        (["dump", "1", "2", "3"], "dump: 3 arguments"),
        (["dump", "0x"], "'0x' is not a number"),
        (["dump", "0", "-5"], "'-5' is not a number"),
        (["dump", "0", "9" * 30], "is not a number"),
        (["paging", "nowhere"], r"'nowhere' is no address \(expected"),
        (["paging", "rip+"], "'' is not a number"),
        (["paging", "0xffffffffffffffff+1"], "over 64 bits"),
        (["registers", "some"], r"registers: 'some' \(expected all or nothing\)"),
    ],
)
def test_what_cannot_be_meant_gets_one_line(vm, words, said):
    for asked in (look, look_data):
        with pytest.raises(UsageError, match=said) as caught:
            asked(vm, words)
        assert "\n" not in str(caught.value)


def test_physical_goes_with_a_dump_alone(vm):
    with pytest.raises(UsageError, match="paging: physical addresses are for dump"):
        look(vm, ["paging", "0"], physical=True)


def test_a_vcpu_that_is_not_there_gets_one_line(vm):
    for name in views.VIEWS:
        with pytest.raises(UsageError, match=r"there is no vCPU 7 \(expected 0 to 0\)"):
            look(vm, [name, *(["0"] if name == "dump" else [])], vcpu=7)
    with pytest.raises(UsageError, match="there is no vCPU -1 "):
        look(vm, ["registers"], vcpu=-1)
    vm.vcpus = []
    with pytest.raises(UsageError, match="has not been started"):
        look(vm, ["registers"])


def test_an_address_is_a_number_a_register_or_a_symbol(vm):
    vm.vcpus[0].state.rsp = 0x7000
    assert [locate(vm, it, 0) for it in ("16", "0x10", "rip", "RSP+0x10", "cr3", "handler", "handler+2", "gdt")] == [
        *(16, 16, CODE, 0x7010, TABLES, CODE + 0x40, CODE + 0x42, GDT),
    ]
    assert number("0xFF") == 255


def test_a_vcpu_that_cannot_be_read_is_named(vm):
    vm.vcpus[0].broken = ("sregs",)
    for words in (["paging", "0"], ["tables"], ["disasm", "0"], ["dump", "0"]):
        with pytest.raises(PyvmmError, match="vCPU 0 cannot be read: .*KVM_GET_SREGS"):
            look(vm, words)
    assert "not in RAM" in text(vm, "dump", "0xfffff000", physical=True)


def test_all_has_every_view(vm):
    shown = text(vm, "all")
    for name in views.VIEWS.keys() - {"all", "dump"}:
        assert f"== {name}\n" in shown
    assert json.loads(json.dumps(look_data(vm, ["all"])))["paging"]["page"] == 2 << 20


@settings(max_examples=60, deadline=None)
@given(data=st.data(), mode=st.sampled_from((LONG, PROTECTED, REAL)))
def test_no_state_of_a_guest_makes_a_view_raise_or_go_on_for_ever(data, mode):
    vcpu, memory = machine(mode=mode)
    number64 = st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from((0, RAM - 1, RAM, 0xFFF, (1 << 64) - 1)))
    for name in ("rip", "rsp", "cr0", "cr3", "cr4", "efer", "gdt_base", "gdt_limit", "idt_base", "idt_limit"):
        if data.draw(st.booleans()):
            setattr(vcpu.state, name, data.draw(number64))
    for base in (TABLES, TABLES + 0x1000, TABLES + 0x2000, GDT, 0):
        memory.write(base, data.draw(st.binary(max_size=64)))
    vm = subject(vcpu, memory)
    for words in (["all"], ["registers", "all"], ["dump", f"{data.draw(number64):#x}", "512"]):
        lines = look(vm, words)
        assert len(lines) < 3000 and max(map(len, lines)) < 600
        json.dumps(look_data(vm, words))
