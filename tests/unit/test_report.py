"""The crash report: what it shows, and that neither a half-broken VM nor a missing library stops it."""

from __future__ import annotations

import json
import sys

import pytest

from pyvmm import cpubits
from pyvmm.boot import segments
from pyvmm.debug import bits
from pyvmm.debug.report import STACK_WORDS, build
from pyvmm.debug.state import capture
from pyvmm.kvm.constants import KVM_MP_STATE_INIT_RECEIVED
from pyvmm.kvm.exits import Exit, Pio, Shutdown
from pyvmm.memory import GuestMemory
from tests.support.fakevcpu import RAM, STACK, crash, machine


def test_text_shows_the_machine() -> None:
    vcpu, memory = machine(b"\x0f\x0b")
    memory.write_u64(STACK, 0x1122334455667788)
    vcpu.state.rax = 0xFEDCBA9876543210
    text = crash(vcpu, memory, before=(Pio(0x3F8, 1, 1, True, b"A"),) * 3).text()
    for part in (
        "the guest crashed: triple fault\nlikely: ",
        "vcpu 0: long mode (64-bit code), 4-level paging, CPL 0, runnable",
        "rax fedcba9876543210",
        "cr0  0x80000033  PE MP ET NE PG",
        "cr4  0x00000620  PAE OSFXSR OSXMMEXCPT",
        "efer 0x00000500  LME LMA",
        "cs  0010  base 00000000 limit ffffffff  code, execute/read, 64-bit, DPL 0",
        "gdt       base 00000500 limit 0000002f",
        "stack at 0x7c00:\n    1122334455667788 0000",
        "code at 0x100000:",
        "<0f> 0b 00",
        "IO out port 0x3f8 size 1 <- 0x41  (3 times)\n    SHUTDOWN (triple fault)",
    ):
        assert part in text, part
    assert all(line == line.rstrip() for line in text.splitlines())


def test_stack_and_code_are_found_through_the_guests_page_tables() -> None:
    vcpu, memory = machine()
    root = 0x10000
    memory.write_u64(root + 8 * 256, root + 0x1003)
    memory.write_u64(root + 0x1000, root + 0x2003)
    memory.write_u64(root + 0x2000, root + 0x3003)
    memory.write_u64(root + 0x3000, 0x50003)
    memory.write(0x50000, b"\xf4")
    memory.write_u64(0x50FF8, 0xABC)
    vcpu.state.cr3 = root
    vcpu.state.rip = 0xFFFF_8000_0000_0000
    vcpu.state.rsp = 0xFFFF_8000_0000_0FF8
    text = crash(vcpu, memory).text()
    assert "code at 0xffff800000000000 (gpa 0x50000):\n    <f4> 00" in text
    assert "stack at 0xffff800000000ff8 (gpa 0x50ff8):\n    0000000000000abc\n" in text


def test_real_mode_counts_by_segment_and_in_16_bits() -> None:
    vcpu, memory = machine(b"\xf4", mode="real", at=0x8010)
    vcpu.state.cs = segments.real_segment(0x800, segments.TYPE_CODE)
    vcpu.state.rip = 0x10
    memory.write_u16(STACK, 0xBEEF)
    text = crash(vcpu, memory).text()
    assert "vcpu 0: real mode, no paging, CPL 0" in text
    assert "code at 0x8010:" in text
    assert "stack at 0x7c00:\n    beef 0000" in text


def test_disassembly_where_capstone_is_installed() -> None:
    pytest.importorskip("capstone")
    vcpu, memory = machine(b"\xf3\x48\x0f\xb8\xc3")
    assert "-> 0x100000: f3 48 0f b8 c3           popcnt rax, rbx" in crash(vcpu, memory).text()
    vcpu, memory = machine(b"\x06" * 32)  # push es, which 64-bit mode has not
    assert "which is no instruction" in crash(vcpu, memory).text()


def test_without_capstone_bytes_and_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "capstone", None)
    vcpu, memory = machine(b"\x0f\x0b")
    text = crash(vcpu, memory).text()
    assert "<0f> 0b" in text
    assert "pip install 'pyvmm-kvm[debug]'" in text
    assert "#UD" in text  # what the reasoning rests on needs no disassembler


@pytest.mark.parametrize(
    ("broken", "said", "kept"),
    [
        (("regs",), "registers could not be read: KvmError: KVM_GET_REGS", "cr0"),
        (("sregs",), "system registers could not be read: KvmError: KVM_GET_SREGS", "rax"),
        (("vcpu_events",), "events could not be read", "likely"),
        (("mp_state",), "state unknown", "likely"),
        (("regs", "sregs", "vcpu_events", "mp_state"), "vcpu 0: state unknown", "SHUTDOWN"),
    ],
)
def test_what_cannot_be_read_is_said(broken: tuple[str, ...], said: str, kept: str) -> None:
    vcpu, memory = machine(b"\x0f\x0b")
    vcpu.broken = broken
    found = crash(vcpu, memory)
    assert said in found.text()
    assert kept in found.text()
    assert json.loads(json.dumps(found.as_dict()))["vcpus"][0]["unread"]


def test_a_vcpu_without_getters_is_reported_too() -> None:
    class Bare:
        index = 3

    memory = GuestMemory.allocate([(0, RAM)])
    text = build("crash", "x", [Bare()], memory, []).text()  # type: ignore[list-item]
    assert "vcpu 3: state unknown" in text
    assert "no exits" in text


def test_the_vcpu_that_crashed_comes_first_and_one_never_started_takes_a_line() -> None:
    first, memory = machine(b"\xf4")
    second, _ = machine()
    second.index = 1
    third, _ = machine()
    third.index, third.mp_state = 2, KVM_MP_STATE_INIT_RECEIVED
    histories: list[list[Exit]] = [[Pio(0x3F8, 1, 1, True, b"A")], [Shutdown()], []]
    found = build("crash", "triple fault", [first, second, third], memory, histories)
    assert [vcpu.state.index for vcpu in found.vcpus] == [1, 0, 2]
    assert {vcpu.state.index for vcpu in found.vcpus if vcpu.reasons} == {1}
    assert "likely (vcpu 1): " in found.text()
    assert found.text().endswith("vcpu 2: long mode (64-bit code), 4-level paging, CPL 0, waiting for SIPI")


def test_as_dict_is_json_and_keeps_all_64_bits() -> None:
    vcpu, memory = machine(b"\x0f\x0b")
    vcpu.state.rbx = 0xFFFF_FFFF_FFFF_FFFF
    vcpu.exception = (14, 2)
    data = json.loads(json.dumps(crash(vcpu, memory).as_dict()))
    assert data["reason"] == "crash"
    assert data["likely"][0]["vcpu"] == 0
    cpu = data["vcpus"][0]
    assert cpu["registers"]["rbx"] == "0xffffffffffffffff"
    assert cpu["control"]["cr0"] == {"value": "0x80000033", "bits": ["PE", "MP", "ET", "NE", "PG"]}
    assert cpu["code"]["bytes"].startswith("0f0b")
    assert cpu["stack"]["width"] == 8 and len(cpu["stack"]["words"]) == STACK_WORDS
    assert cpu["exception"] == 14
    assert cpu["segments"]["cs"]["selector"] == "0x10"
    assert cpu["exits"] == [{"text": "SHUTDOWN (triple fault)", "times": 1}]


def test_bit_names_agree_with_the_constants() -> None:
    tables = {"CR0_": bits.CR0, "CR4_": bits.CR4, "EFER_": bits.EFER, "RFLAGS_": bits.RFLAGS}
    checked = 0
    for name, value in vars(cpubits).items():
        for prefix, table in tables.items():
            if name.startswith(prefix) and name.removeprefix(prefix) in table.values():
                assert table[value.bit_length() - 1] == name.removeprefix(prefix)
                checked += 1
    assert checked > 20
    assert bits.names(1 << 9 | 1 << 26, bits.CR4) == "OSFXSR bit 26"
    assert bits.rflags_names(0x3202) == "IF IOPL=3"


def test_modes() -> None:
    for mode, text in (
        ("real", "real mode, no paging, CPL 0"),
        ("protected", "protected mode (32-bit code), no paging, CPL 0"),
        ("long", "long mode (64-bit code), 4-level paging, CPL 0"),
    ):
        assert capture(machine(mode=mode)[0]).describe_mode() == text
    vcpu, _ = machine()
    vcpu.state.cs = segments.flat_code()
    vcpu.state.ss = segments.Segment(0x2B, 0, 0xFFFFFFFF, 3, dpl=3, db=1, g=1)
    assert capture(vcpu).describe_mode() == "long mode (compatibility, 32-bit code), 4-level paging, CPL 3"
    vcpu, _ = machine(mode="protected")
    vcpu.state.rflags |= cpubits.RFLAGS_VM
    assert capture(vcpu).describe_mode() == "virtual-8086 mode, no paging, CPL 3"
