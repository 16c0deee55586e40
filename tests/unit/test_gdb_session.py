"""gdb's packets against a VM of scripted vCPUs: registers, memory, places to stop, threads, the end, what is wrong."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from pyvmm.debug.gdb.description import Description, elf_bits
from pyvmm.debug.gdb.monitor import Monitor
from pyvmm.debug.gdb.points import LONGEST_WATCHED, MOST_WATCHED
from pyvmm.errors import KvmError
from pyvmm.kvm.constants import (
    KVM_GUESTDBG_BLOCKIRQ,
    KVM_GUESTDBG_ENABLE,
    KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP,
    KVM_GUESTDBG_USE_SW_BP,
)
from pyvmm.kvm.exits import Debug, Pio, Shutdown
from pyvmm.kvm.host import INT3
from tests.support.gdbrig import CODE, LIMITED, RAM, TABLES, USER, Rig, at, cpu, refused, stepped, words

STEP = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ
DATA = 0x180000


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.end()


@pytest.fixture
def limited() -> Iterator[Rig]:
    """On a host that can do little."""
    made = Rig(can=LIMITED)
    yield made
    made.end()


@pytest.fixture
def pair() -> Iterator[Rig]:
    made = Rig(cpus=2)
    yield made
    made.end()


def number(rig: Rig, name: str) -> int:
    return next(at for at, register in enumerate(rig.session.description.registers) if register.name == name)


def read(rig: Rig, name: str) -> int:
    return int.from_bytes(bytes.fromhex(rig.ask(f"p{number(rig, name):x}")), "little")


def write(rig: Rig, name: str, value: int) -> str:
    size = rig.session.description.registers[number(rig, name)].bits // 8
    return rig.ask(f"P{number(rig, name):x}={value.to_bytes(size, 'little').hex()}")


def monitor(rig: Rig, command: str) -> str:
    said = rig.session.answer(b"qRcmd," + command.encode().hex().encode())
    assert said[-1] == b"OK"
    return words(text.decode() for text in said)


# --- What there is ---------------------------------------------------------------------------------------------------


def test_what_the_stub_can_do_is_said(rig):
    features = rig.ask("qSupported:multiprocess+;swbreak+").split(";")
    assert {"QStartNoAckMode+", "qXfer:features:read+", "swbreak+", "hwbreak+"} <= set(features)
    assert rig.ask("vCont?") == "vCont;c;C;s;S;r"
    assert rig.ask("qAttached") == "1"
    assert rig.ask("qC") == "QC1" and rig.ask("qCRC:1000,8") == ""  # another packet that begins alike
    assert rig.ask("?") == "T05thread:1;"


def test_what_is_not_known_is_answered_by_nothing(rig):
    for packet in ("vMustReplyEmpty", "qOffsets", "QNonStop:1", "b", "R", "\xff"):
        assert rig.ask(packet) == ""


@pytest.mark.parametrize(
    ("mode", "architecture", "pc"), [("long", "i386:x86-64", 8), ("protected", "i386", 4), ("real", "i8086", 4)]
)
def test_the_description_follows_the_mode_and_g_has_what_it_says(mode, architecture, pc):
    rig = Rig(mode=mode)
    xml, offset = "", 0
    while True:
        part = rig.ask(f"qXfer:features:read:target.xml:{offset:x},100")
        xml += part[1:]
        offset += len(part) - 1
        if part[0] == "l":
            break
    assert f"<architecture>{architecture}</architecture>" in xml
    sizes = [int(size) for size in re.findall(r'<reg name="\w+" bitsize="(\d+)"', xml)]
    names = re.findall(r'<reg name="(\w+)"', xml)
    assert len(names) == len(set(names))
    assert len(rig.ask("g")) == sum(sizes) // 4
    assert sizes[names.index("rip" if mode == "long" else "eip")] == pc * 8
    rig.end()


@pytest.mark.parametrize(("bits", "first_sse", "order"), [(64, 40, "rax rbx rcx rdx"), (32, 32, "eax ecx edx ebx")])
def test_registers_have_the_numbers_and_names_of_gdbs_own_descriptions(bits, first_sse, order):
    """features/i386/64bit-core.xml and 64bit-sse.xml, 32bit-core.xml and 32bit-sse.xml in gdb's sources."""
    described = Description(bits)
    names = [register.name for register in described.registers]
    assert names[:4] == order.split()
    assert names[names.index("eflags") + 1 :][:6] == ["cs", "ss", "ds", "es", "fs", "gs"]
    assert names.index("xmm0") == first_sse
    assert names[first_sse - 8 : first_sse] == ["fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"]
    ways = re.search(rb'<union id="vec128">(.*?)</union>', described.xml, re.DOTALL)
    assert ways is not None
    assert re.findall(r'field name="(\w+)"', ways[1].decode()) == [
        "v4_float", "v2_double", "v16_int8", "v8_int16", "v4_int32", "v2_int64", "uint128",
    ]  # fmt: skip


def test_a_connection_shows_what_was_chosen_and_at_least_what_the_kernels_symbols_are(tmp_path):
    rig = Rig(mode="protected")
    assert rig.monitor.bits(32) == 32
    assert "i386:x86-64" in monitor(rig, "architecture i386:x86-64")
    assert rig.monitor.bits(32) == 64
    assert "expected" in monitor(rig, "architecture arm")
    assert "auto" in monitor(rig, "architecture auto")
    assert Monitor(None, 64).bits(32) == 64
    assert Monitor(None, 32).bits(64) == 64
    (tmp_path / "kernel").write_bytes(b"\x7fELF\x02")
    assert elf_bits(str(tmp_path / "kernel")) == 64
    assert elf_bits(str(tmp_path / "no")) == elf_bits("/dev/null") == 0
    rig.end()


def test_a_guest_that_comes_to_a_wider_mode_is_told_of():
    rig = Rig(mode="protected")

    def widen(vcpu):
        vcpu.state = cpu("long")
        return stepped(CODE + 2)(vcpu)

    assert "disconnect" in words(rig.run("vCont;s:1", widen))
    assert words(rig.run("vCont;s:1", stepped(CODE + 4))) == ""
    rig.end()


def test_monitor_is_about_the_processor_that_stopped_or_was_chosen(pair):
    pair.ask("Hg2")
    assert "vCPU 0" in monitor(pair, "vcpu")
    assert "vCPU 1" in monitor(pair, "vcpu 1")
    assert "expected" in monitor(pair, "vcpu 2")
    pair.run("vCont;s:1", stepped(CODE + 2))
    assert "vCPU 0" in monitor(pair, "vcpu")


@pytest.mark.parametrize("text", ["", "help", "physical", "physical maybe", "no such", "x" * 9999, "vcpu x", "\x00"])
def test_monitor_answers_anything_in_words(rig, text):
    assert monitor(rig, text).endswith("\n")


# --- Registers -------------------------------------------------------------------------------------------------------


def test_every_register_of_the_core_is_read_and_written(rig):
    for register in rig.session.description.registers:
        if register.source.startswith(("regs.", "xmm.", "st.", "x87.", "pc", "msr.", "mxcsr.")):
            value = 0xFFFE if register.name == "ftag" else 0x1234 if register.bits == 32 else 0x1234567
            assert write(rig, register.name, value) == "OK", register.name
            assert read(rig, register.name) == value, register.name
    vcpu = rig.vcpus[0]
    assert vcpu.state.r15 == vcpu.state.rax == vcpu.state.rip == 0x1234567
    assert vcpu.msrs[0xC0000102] == 0x1234567


def test_all_registers_at_once_go_back_as_they_came(rig):
    before = rig.ask("g")
    changed = bytearray(bytes.fromhex(before))
    changed[0:8] = (77).to_bytes(8, "little")
    assert rig.ask("G" + changed.hex()) == "OK"
    assert rig.vcpus[0].state.rax == 77
    assert rig.ask("g") == changed.hex()


def test_a_segment_register_is_not_written_in_protected_mode(rig):
    assert "only the guest's own instructions load cs" in write(rig, "cs", 0x33)


def test_in_real_mode_the_program_counter_is_linear_and_a_selector_brings_its_base():
    rig = Rig(mode="real")
    assert read(rig, "eip") == 0x10020
    assert write(rig, "eip", 0x10040) == "OK"
    assert rig.vcpus[0].state.rip == 0x40
    assert write(rig, "es", 0x2000) == "OK"
    assert rig.vcpus[0].state.es.base == 0x20000
    rig.end()


def test_tags_of_x87_registers_are_told_in_full(rig):
    fpu = rig.vcpus[0].fpu
    fpu.fsw, fpu.ftwx = 6 << 11, 0b1100_0000  # two on the stack: st0 is physical 6
    fpu.fpr[0] = [*bytes(7), 0x80, 0xFF, 0x3F, *bytes(6)]  # 1.0
    fpu.fpr[1] = [0] * 16
    assert read(rig, "ftag") == 0b01_00_11_11_11_11_11_11
    assert read(rig, "st0") == 0x3FFF_8000_0000_0000_0000


def test_sse_is_in_use_once_its_control_register_is_written(rig):
    assert write(rig, "mxcsr", 0x1FA0) == "OK"
    region = rig.vcpus[0].xsave.region
    assert (region[6], region[128] & 2) == (0x1FA0, 2)  # SDM volume 1, 10.5.1 and 13.4.2


def test_what_kvm_does_not_give_has_no_value(rig):
    rig.vcpus[0].broken.add("msrs")
    assert rig.ask(f"p{number(rig, 'kernel_gs_base'):x}") == "xx" * 8
    assert rig.ask("g").count("x") == 16


def test_memory_is_read_by_the_page_tables_that_were_just_chosen(rig):
    rig.memory.write_u64(DATA, (DATA + 0x1000) | 3)  # PML4E, PDPTE and PDE: address 0 is DATA
    rig.memory.write_u64(DATA + 0x1000, (DATA + 0x2000) | 3)
    rig.memory.write_u64(DATA + 0x2000, CODE & ~0x1FFFFF | 0x83)
    before = read(rig, "cr3")
    assert rig.ask("m200000,1") == "E0e"
    rig.memory.write_u64(DATA + 0x2000 + 8, 0x83)  # 2 MiB is 0 too
    assert write(rig, "cr3", DATA) == "OK"
    assert rig.ask(f"m{0x200000 + CODE:x},4") == "00010203"
    registers = bytearray(bytes.fromhex(rig.ask("g")))
    at_ = sum(register.bits // 8 for register in rig.session.description.registers[: number(rig, "cr3")])
    registers[at_ : at_ + 8] = before.to_bytes(8, "little")
    assert rig.ask("G" + registers.hex()) == "OK"
    assert rig.ask(f"m{0x200000 + CODE:x},4") == "E0e"


@pytest.mark.parametrize("packet", ["c{:x}", "C05;{:x}", "s{:x}", "S05;{:x}"])
def test_the_guest_goes_on_where_it_is_told_to(rig, packet):
    begun = []

    def begin(vcpu):
        begun.append(vcpu.state.rip)
        return Debug(1, CODE + 16, 0x4000, 0x400) if packet[0] in "sS" else Debug(3, CODE + 16, 0, 0x400)

    rig.ask(f"Z0,{CODE + 16:x},1")
    rig.run(packet.format(CODE + 8), begin, at(CODE + 16, Debug(3, CODE + 16, 0, 0x400)))
    assert begun == [CODE + 8]


def test_a_processor_that_halts_runs_from_where_it_is_put(rig):
    rig.vcpus[0].mp_state = 3
    write(rig, "rip", CODE + 8)
    assert rig.vcpus[0].mp_state == 0


# --- Memory ----------------------------------------------------------------------------------------------------------


def test_memory_is_read_and_written_by_linear_address(rig):
    assert rig.ask(f"m{CODE:x},4") == "00010203"
    assert rig.ask(f"m{CODE:x},10") == bytes(range(16)).hex()
    assert rig.ask(f"M{DATA:x},10:{'ab' * 16}") == "OK"
    assert rig.ask(f"M{DATA:x},2:beef") == "OK"
    assert rig.ask(f"X{DATA + 2:x},3:".encode() + b"}#\x00") == "OK"
    assert rig.memory.read(DATA, 5) == b"\xbe\xef}#\x00"
    assert rig.ask(f"X{DATA:x},0:") == "OK"


def test_what_is_no_memory_is_an_error_and_what_ends_is_cut(rig):
    assert rig.ask(f"m{RAM:x},4") == "E0e"
    assert rig.ask(f"m{RAM - 2:x},8") == "0000"
    assert rig.ask("mffff800000000000,4") == "E0e"
    assert rig.ask(f"M{RAM - 1:x},2:beef").startswith("E")
    assert rig.memory.read_u8(RAM - 1) == 0
    assert rig.ask("mfffffffffffffffe,10") == "E0e"
    assert rig.ask("m7fffffffffffffffffffffff,10") == "E0e"


def test_physical_addresses_are_a_matter_of_monitor(rig):
    rig.memory.write_u64(TABLES, 0)  # nothing is mapped any more
    rig.target.forget()
    assert rig.ask(f"m{CODE:x},4") == "E0e"
    said = rig.session.answer(b"qRcmd," + b"physical on".hex().encode())
    assert "guest-physical" in words(text.decode() for text in said)
    assert said[-1] == b"OK"
    assert rig.ask(f"m{CODE:x},4") == "00010203"
    assert rig.ask(f"M{TABLES:x},8:{(TABLES + 0x1000 | 3).to_bytes(8, 'little').hex()}") == "OK"
    assert "linear" in monitor(rig, "physical off")
    assert rig.ask(f"m{CODE:x},4") == "00010203" and "linear" in monitor(rig, "physical")


def test_why_memory_cannot_be_written_is_said(rig):
    assert "cannot access 0x200000: no RAM" in rig.ask(f"M{RAM:x},1:00")
    assert "not present" in rig.ask("M8000000000,1:00")
    rig.vcpus[0].get_sregs = lambda: (_ for _ in ()).throw(KvmError("KVM_GET_SREGS", 22))
    rig.target.forget()
    assert "registers cannot be read" in rig.ask(f"M{CODE:x},1:00")


# --- Stops on a host that can do everything --------------------------------------------------------------------------


def test_a_planted_byte_is_there_while_the_guest_runs_and_only_then(rig):
    seen = []

    def look(vcpu):
        seen.append(rig.memory.read_u8(CODE + 4))
        vcpu.state.rip = CODE + 4
        return Debug(3, CODE + 4, 0, 0x400)

    assert rig.ask(f"Z0,{CODE + 4:x},1") == "OK"
    assert rig.ask(f"m{CODE + 4:x},1") == "04"
    assert rig.run("vCont;c", look) == ["T05thread:1;swbreak:;"]
    assert seen == [INT3]
    assert rig.memory.read_u8(CODE + 4) == 4
    assert rig.vcpus[0].debugging[0][0] == KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP
    assert rig.vcpus[0].debugging[-1][0] == 0
    assert rig.ask(f"z0,{CODE + 4:x},1") == "OK"


def test_what_the_guest_writes_over_a_planted_byte_stays(rig):
    def overwrite(vcpu):
        rig.memory.write_u8(CODE + 4, 0x55)
        return stepped(CODE + 9)(vcpu)

    rig.ask(f"Z0,{CODE + 4:x},1")
    rig.ask(f"Z0,{CODE + 5:x},1")
    rig.run("vCont;s:1", overwrite)
    assert rig.memory.read(CODE + 4, 2) == b"\x55\x05"


def test_an_int3_of_the_guests_own_reaches_the_guest(rig):
    rig.ask(f"Z0,{CODE + 4:x},1")
    own = at(CODE + 8, Debug(3, CODE + 8, 0x4000, 0x400))
    hit = at(CODE + 4, Debug(3, CODE + 4, 0, 0x400))
    assert rig.run("vCont;c", own, hit) == ["T05thread:1;swbreak:;"]
    assert rig.vcpus[0].injected == [3] and rig.vcpus[0].debugregs.dr6 == 0
    events = rig.vcpus[0].events
    assert vars(events.exception) == {"injected": 1, "pending": 0, "nr": 3, "has_error_code": 0, "error_code": 0}
    assert events.flags == 0
    assert [exit.exception for exit in rig.loops[0].history if isinstance(exit, Debug)] == [3, 3]


def test_a_debug_exception_of_the_guests_own_reaches_the_guest(rig):
    rig.ask(f"Z0,{CODE + 4:x},1")
    own = at(CODE + 8, Debug(1, CODE + 8, 0x4000, 0x400))
    hit = at(CODE + 4, Debug(3, CODE + 4, 0, 0x400))
    rig.run("vCont;c", own, hit)
    assert rig.vcpus[0].injected == [1]
    assert rig.vcpus[0].debugregs.dr6 == 0x4000


def test_hardware_breakpoints_and_watchpoints_are_debug_registers(rig):
    assert rig.ask("Z1,123456,1") == "OK"
    assert rig.ask("Z2,200008,8") == "OK"
    assert rig.ask("Z4,200010,4") == "OK"
    hit = at(CODE + 4, Debug(1, CODE + 4, 0b010, 0x400))
    assert rig.run("vCont;c", hit) == ["T05thread:1;watch:200008;"]
    control, registers = rig.vcpus[0].debugging[0]
    assert control == KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP
    assert registers[:4] == [0x123456, 0x200008, 0x200010, 0]
    # G0, G1, G2; execute 1 byte, write 8, read or write 4 (SDM volume 3B, figure 18-1)
    assert registers[7] == 1 << 10 | 1 << 9 | 0b101010 | 0b1001 << 20 | 0b1111 << 24
    assert rig.run("c", at(0x123456, Debug(1, 0x123456, 1, 0x400))) == ["T05thread:1;hwbreak:;"]
    for packet in ("z1,123456,1", "z2,200008,8", "z4,200010,4"):
        assert rig.ask(packet) == "OK"
    assert rig.target.points.hardware == []


def test_what_debug_registers_cannot_do_is_refused_in_a_sentence(rig):
    assert "awatch" in rig.ask("Z3,200000,4")
    assert "aligned" in rig.ask("Z2,200001,4")
    assert "aligned" in rig.ask("Z2,200000,10")
    for at_ in range(4):
        assert rig.ask(f"Z1,{at_:x},1") == "OK"
    assert rig.ask("Z1,0,1") == "OK"  # it is there already
    assert "4 debug registers" in rig.ask("Z1,9,1")


def test_a_step_is_one_instruction_without_interrupts(rig):
    assert rig.run("vCont;s:1", stepped(CODE + 2)) == ["T05thread:1;"]
    assert [control for control, _ in rig.vcpus[0].debugging] == [STEP, 0]
    assert rig.vcpus[0].state.rip == CODE + 2


def test_an_access_is_a_step_once_it_is_complete(rig):
    assert rig.run("s", at(CODE + 1, Pio(0x80, 1, 1, True, b"x"))) == ["T05thread:1;"]


def test_steps_within_a_range_are_told_once(rig):
    script = [stepped(CODE + 2), at(CODE + 4, Pio(0x80, 1, 1, False)), stepped(CODE + 6), stepped(CODE + 0x20)]
    assert rig.run(f"vCont;r{CODE:x},{CODE + 8:x}:1", *script) == ["T05thread:1;"]
    assert rig.vcpus[0].state.rip == CODE + 0x20


def test_the_second_access_out_of_a_range_is_a_stop(rig):
    script = [at(CODE + 2, Pio(0x80, 1, 1, False)), at(CODE + 0x30, Pio(0x80, 1, 1, False))]
    assert rig.run(f"vCont;r{CODE:x},{CODE + 8:x}:1", *script) == ["T05thread:1;"]
    assert rig.vcpus[0].state.rip == CODE + 0x30


def test_between_two_steps_an_access_is_completed_and_nothing_beyond_it_done(rig):
    vcpu, run, completed = rig.vcpus[0], rig.vcpus[0].run, []

    def complete():  # what the loop itself calls it has in hand already
        completed.append(vcpu.state.rip)
        return run()

    vcpu.run = complete
    script = [at(CODE + 2, Pio(0x80, 1, 1, False)), stepped(CODE + 0x20)]
    rig.run(f"vCont;r{CODE:x},{CODE + 8:x}:1", *script)
    assert completed == [CODE + 2, CODE + 0x20]


def test_an_ioctl_that_fails_is_a_stop_in_words(rig):
    rig.vcpus[0].broken.add("guest_debug")
    rig.session.answer(b"vCont;s:1")
    rig.vcpus[0].broken.clear()
    said = [text.decode() for text in rig.wait()]
    assert "KVM_SET_GUEST_DEBUG" in words(said)
    assert said[-1] == "T02thread:1;"


# --- Stops on a host that can do little ------------------------------------------------------------------------------


def test_an_instruction_that_kvm_refuses_is_the_breakpoint_if_it_was_planted(limited):
    assert limited.ask(f"Z0,{CODE + 4:x},1") == "OK"
    assert limited.run("vCont;c", refused(CODE + 4)) == ["T05thread:1;swbreak:;"]
    assert limited.control.outcome is None
    assert not limited.vcpus[0].debugging[0][0] & KVM_GUESTDBG_USE_SW_BP


def test_a_kvm_that_raises_an_exception_as_well_has_it_taken_back(limited):
    vcpu = limited.vcpus[0]
    vcpu.pending = 6
    limited.ask(f"Z0,{CODE + 4:x},1")
    assert limited.run("vCont;c", refused(CODE + 4)) == ["T05thread:1;swbreak:;"]
    assert vcpu.injected == [0] and vcpu.events.flags == 0
    assert (vcpu.events.exception.injected, vcpu.events.exception.pending) == (0, 0)
    vcpu.pending = 13  # another one is the guest's
    limited.run("vCont;c", refused(CODE + 4))
    assert vcpu.injected == [0]


def test_the_same_memory_at_another_address_is_told_apart(limited):
    limited.memory.write_u64(TABLES + 0x1000 + 8 * 3, 0 | 0x83)  # 3 GiB is 0 too
    limited.target.forget()
    limited.ask(f"Z0,{CODE + 4:x},1")
    said = limited.run("vCont;c", refused(0xC0000000 + CODE + 4))
    assert said[-1] == "T05thread:1;"
    assert "the same memory" in words(said)


def test_a_watchpoint_is_found_by_stepping_and_comparing(limited):
    assert limited.ask(f"Z2,{DATA:x},4") == "OK"

    def change(vcpu):
        limited.memory.write_u32(DATA, 7)
        return stepped(CODE + 6)(vcpu)

    said = limited.run("vCont;c", stepped(CODE + 2), at(CODE + 3, Pio(0x80, 1, 1, True, b"x")), change)
    assert said[-1] == f"T05thread:1;watch:{DATA:x};"
    assert "single steps" in words(said)
    assert limited.run("vCont;s:1", stepped(CODE + 9)) == ["T05thread:1;"]
    assert limited.ask(f"z2,{DATA:x},4") == "OK"


def test_what_comparing_cannot_watch_is_refused_in_a_sentence(limited):
    assert "nothing is mapped" in limited.ask("Z2,8000000000,4")
    assert f"at most {MOST_WATCHED} watchpoints of {LONGEST_WATCHED} bytes" in limited.ask(
        f"Z2,{DATA:x},{LONGEST_WATCHED + 1:x}"
    )
    for index in range(MOST_WATCHED):
        assert limited.ask(f"Z2,{DATA + 8 * index:x},4") == "OK"
    assert "at most" in limited.ask(f"Z2,{DATA + 8 * MOST_WATCHED:x},4")


def test_a_watchpoint_for_reads_is_refused(limited):
    assert "comparing does not find reads" in limited.ask(f"Z4,{DATA:x},4")
    assert "comparing does not find reads" in words(limited.run("vCont;s:1", stepped(CODE + 1)))


def test_a_program_is_not_stepped_where_the_step_would_end_in_the_guest(limited):
    limited.vcpus[0].state.ss.dpl = limited.vcpus[0].state.cs.dpl = 3
    limited.target.forget()
    said = limited.run("vCont;s:1")
    assert said[-1] == "T02thread:1;"
    assert "cannot step" in words(said)
    assert limited.vcpus[0].debugging == [] or limited.vcpus[0].debugging[-1][0] == 0


def test_breakpoints_in_programs_are_refused(limited):
    for table in (TABLES, TABLES + 0x1000, TABLES + 0x2000):
        limited.memory.write_u64(table, limited.memory.read_u64(table) | USER)
    limited.target.forget()
    assert "is a program's" in limited.ask(f"Z0,{CODE:x},1")
    assert "is a program's" in limited.ask(f"Z1,{CODE:x},1")
    assert limited.target.points.planted == {}


def test_where_nothing_is_mapped_hardware_breakpoints_help(limited):
    assert "hbreak" in limited.ask("Z0,ffffffff81000000,1")
    assert limited.ask("Z1,ffffffff81000000,1") == "OK"


# --- Threads ---------------------------------------------------------------------------------------------------------


def test_processors_are_threads(pair):
    assert pair.ask("qfThreadInfo") == "m1,2"
    assert pair.ask("qsThreadInfo") == "l"
    assert bytes.fromhex(pair.ask("qThreadExtraInfo,2")).startswith(b"vCPU 1: long mode")
    assert pair.ask("T2") == "OK"
    assert pair.ask("T3") == "E01"
    pair.vcpus[1].state.rax = 0x99
    assert pair.ask("Hg2") == "OK"
    assert read(pair, "rax") == 0x99
    assert pair.ask("qC") == "QC2"


def test_a_breakpoint_may_be_where_only_the_other_processor_has_memory(pair):
    pair.memory.write_u64(DATA, 0)
    pair.vcpus[0].state.cr3 = DATA
    pair.target.forget()
    assert pair.ask(f"m{CODE:x},1") == "E0e"
    assert pair.ask(f"Z0,{CODE + 4:x},1") == "OK"
    assert len(pair.target.points.planted) == 1


def test_one_steps_and_the_other_stands(pair):
    ran = []
    pair.vcpus[0].exits.append(lambda vcpu: ran.append(0) or stepped(CODE)(vcpu))
    assert pair.run("vCont;s:2", stepped(CODE + 2), vcpu=1) == ["T05thread:2;"]
    assert ran == []


def test_two_that_stop_together_are_told_one_after_the_other(pair):
    pair.ask("Z2,200008,8")
    pair.vcpus[0].exits.append(at(CODE + 4, Debug(1, CODE + 4, 1, 0x400)))
    told = {pair.run("vCont;c", at(CODE + 4, Debug(1, CODE + 4, 1, 0x400)), vcpu=1)[-1]}
    if not any(vcpu.exits for vcpu in pair.vcpus):
        told.add(pair.run("vCont;c")[-1])
        assert told == {"T05thread:1;watch:200008;", "T05thread:2;watch:200008;"}


def test_an_interrupt_stops_all(pair):
    assert pair.session.answer(b"vCont;c") == []
    assert pair.session.interrupt() == [b"T02thread:1;"]
    assert pair.control.parked == 2
    assert pair.session.interrupt() == []


# --- The end ---------------------------------------------------------------------------------------------------------


def test_a_crash_is_a_stop_and_going_on_ends_the_run(rig):
    said = rig.run("vCont;c", Shutdown())
    assert said[-1] == "T06thread:1;"
    assert "triple fault" in words(said)
    assert rig.ask(f"m{CODE:x},2") == "0001"
    rig.session.answer(b"vCont;c")
    assert rig.control.outcome.reason == "crash"
    assert rig.session.ended(rig.control.outcome) == [b"W79"]


def test_a_crash_without_a_debugger_ends_the_run(rig):
    rig.session.answer(b"D")
    rig.target.connect(False)
    rig.vcpus[0].exits.append(Shutdown())
    rig.vcpus[0].kick()
    for thread in rig.threads:
        thread.join(5)
    assert rig.control.outcome.reason == "crash"


def test_letting_go_takes_every_breakpoint_along(rig):
    rig.ask(f"Z0,{CODE + 4:x},1")
    rig.ask("Z1,5,1")
    assert rig.ask("D") == "OK"
    assert rig.session.leaving
    assert rig.memory.read_u8(CODE + 4) == 4
    assert rig.target.points.planted == {} and rig.target.points.hardware == []
    assert not rig.target.held


def test_a_debugger_that_goes_while_the_guest_runs_leaves_nothing_planted(rig):
    rig.ask(f"Z0,{CODE + 4:x},1")
    rig.session.answer(b"vCont;c")
    rig.target.run_free()
    assert rig.memory.read_u8(CODE + 4) == 4
    assert not rig.target.held


def test_killing_ends_the_run(rig):
    assert rig.ask("vKill;1") == "OK"
    assert rig.control.outcome.reason == "killed"


def test_time_at_a_stop_is_counted_while_a_debugger_is_there(rig):
    rig.target._since -= 100
    assert rig.target.stood >= 100
    rig.target.connect(False)
    rig.target._since -= 100
    assert 100 <= rig.target.stood < 200


# --- Broken and hostile clients --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "packet",
    ["p", "pzz", "p-1", "pfff", "P", "P0", "P0=1", "Pfff=00", "m", "m,", "mx,1", "m0", "M0,1", "M0,2:00", "X0,5:a",
     "Z", "Z9,0,1", "Z0", "Z0,0", "z0,g,1", "H", "Hg99", "Hgz", "T", "Tzz", "vCont", "vCont;", "vCont;q", "vCont;c:99",
     "vCont;r1", "qXfer:features:read:target.xml:", "qXfer:features:read:x:0,9", "qRcmd,1", "qThreadExtraInfo,",
     "G00zz", "s" + "f" * 40, "Z2,0,-5", "m-1,-1"],
)  # fmt: skip
def test_a_malformed_packet_is_an_error_and_the_next_one_works(rig, packet):
    found = rig.session.answer(packet.encode())
    assert len(found) == 1
    assert found[0] == b"" or found[0].startswith((b"E", b"OK", b"l")) or packet.startswith("m")
    assert rig.ask(f"m{CODE:x},2") == "0001"
    assert rig.target.held


def test_random_packets_harm_nothing():
    source = random.Random(8)
    starts = ["p", "P", "m", "M", "X", "Z", "z", "H", "T", "G", "qXfer:features:read:target.xml:", "qRcmd,", "vCont;q",
              "qThreadExtraInfo,", "q", "v", "Q", "!", "?", "g"]  # fmt: skip
    rig = Rig(can=LIMITED)
    before = rig.memory.read(CODE, 64)
    for _ in range(3000):
        noise = "".join(source.choice("0123456789abcdef,:;=-gz#$\x00\xff") for _ in range(source.randrange(30)))
        packet = (source.choice(starts) + noise).encode("latin-1")
        if packet[:1] in (b"M", b"X", b"P", b"G"):
            continue  # these may change the guest, which is what they are for
        for answer in rig.session.answer(packet):
            assert isinstance(answer, bytes)
    assert rig.control.outcome is None and rig.target.held
    rig.target.points.clear()
    assert rig.memory.read(CODE, 64) == before
    assert rig.ask(f"m{CODE:x},1") == "00"
    rig.end()
