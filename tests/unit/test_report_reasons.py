"""What the crash report supposes: each heuristic fires on what it is for, and sound machines are not blamed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyvmm import cpubits
from pyvmm.boot import segments
from pyvmm.debug.report import build
from pyvmm.kvm.constants import KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED
from pyvmm.kvm.exits import FailEntry, InternalError, Mmio, Pio, Unknown
from pyvmm.memory import GuestMemory
from tests.support.fakevcpu import CODE, GDT, TABLES, FakeVcpu, crash, likely, machine, stalled

# --- Triple faults ---------------------------------------------------------------------------


def test_undefined_instruction_without_an_idt() -> None:
    text = likely(crash(*machine(b"\x0f\x0b")))
    assert "first exception was #UD invalid opcode" in text
    assert "there is no IDT (limit 0x0)" in text
    assert "reset a PC" in text


def idt(vcpu: FakeVcpu, memory: GuestMemory, gates: dict[int, int], size: int = 16, limit: int = 0xFFF) -> None:
    """An IDT at 0x9000 with `gates`, each the low 8 bytes of a gate."""
    vcpu.state.idt_base, vcpu.state.idt_limit = 0x9000, limit
    for vector, gate in gates.items():
        memory.write_u64(0x9000 + vector * size, gate)


def gate(offset: int = CODE, selector: int = 0x10, access: int = 0x8E) -> int:
    return offset & 0xFFFF | selector << 16 | access << 40 | (offset >> 16) << 48


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ({}, "gate for vector 6 is empty"),
        ({6: gate(access=0x0E)}, "gate for vector 6 is not present"),
        ({6: gate(access=0x8C)}, "entry for vector 6 is no gate (call gate)"),
        ({6: gate(selector=0)}, "wants code segment 0x0, and that is the null selector"),
        ({6: gate(selector=0x80)}, "the GDT at 0x500 is too short for it (limit 0x2f)"),
        ({6: gate(selector=0x18)}, "the GDT has data, read/write there"),
        ({6: gate(selector=0x8)}, "the GDT has an empty entry there"),
        ({6: gate(offset=0x800000)}, "the handler for vector 6 at 0x800000 is outside RAM"),
        ({6: gate(selector=0)}, "nor could a double fault be delivered: the IDT's gate for vector 8 is empty"),
    ],
)
def test_a_bad_gate_is_named(gates: dict[int, int], said: str) -> None:
    vcpu, memory = machine(b"\x0f\x0b")
    idt(vcpu, memory, gates)
    assert said in likely(crash(vcpu, memory))


def test_an_idt_too_short_or_out_of_reach() -> None:
    vcpu, memory = machine(b"\x0f\x0b")
    idt(vcpu, memory, {}, limit=0x3F)
    assert "the IDT ends before vector 6 (limit 0x3f)" in likely(crash(vcpu, memory))
    vcpu.state.idt_base, vcpu.state.idt_limit = 0x4000_0000, 0xFFF
    assert "the IDT at 0x40000000 is not in mapped RAM" in likely(crash(vcpu, memory))


def test_sound_gates_are_not_blamed() -> None:
    vcpu, memory = machine(b"\x0f\x0b")
    idt(vcpu, memory, {vector: gate() for vector in (6, 8, 13, 14)})
    text = likely(crash(vcpu, memory))
    assert "#UD" in text
    assert "gate" not in text
    assert "IDT" not in text


def test_a_32_bit_gate() -> None:
    vcpu, memory = machine(b"\x0f\x0b", mode="protected")
    memory.write(GDT, segments.gdt([segments.flat_code(), segments.flat_data()]))
    idt(vcpu, memory, {6: gate(offset=0x8000_0000)}, size=8)
    assert "the handler for vector 6 at 0x80000000 is outside RAM" in likely(crash(vcpu, memory))
    idt(vcpu, memory, {6: gate()}, size=8)
    assert "vector 6" not in likely(crash(vcpu, memory))


def test_page_fault_by_cr2_shows_the_walk() -> None:
    vcpu, memory = machine()
    vcpu.cr2 = 0xDEAD_BEEF_000
    found = crash(vcpu, memory)
    assert "#PF page fault, at the address in CR2, 0xdeadbeef000: PML4E not present" in found.text()
    assert "  walk of 0xdeadbeef000:\n    PML4E [ 27]" in found.text()


def test_an_exception_kvm_was_delivering() -> None:
    vcpu, memory = machine()
    vcpu.exception = (13, 0x18)
    found = crash(vcpu, memory)
    assert "#GP general protection, which KVM was about to deliver" in likely(found)
    assert "exception under delivery: #GP general protection, error code 0x18" in found.text()


def test_no_idt_is_said_when_nothing_tells_the_exception() -> None:
    text = likely(crash(*machine()))
    assert text == "an exception could not be delivered: there is no IDT (limit 0x0), so no exception can be handled"


def registers(**values: int) -> Callable[[FakeVcpu], None]:
    def change(vcpu: FakeVcpu) -> None:
        for name, value in values.items():
            setattr(vcpu.state, name, value)

    return change


@pytest.mark.parametrize(
    ("code", "mode", "change", "said"),
    [
        ("cc", "long", registers(), "#BP breakpoint, from the instruction"),
        ("cd 20", "long", registers(), "interrupt 32, from the instruction"),
        ("f7 f1", "long", registers(), "#DE divide error"),
        (
            "0f 22 c0",
            "protected",
            registers(rax=0x80000001),
            "it moves 0x80000001 to CR0, which turns on 32-bit or PAE",
        ),
        ("0f 22 c0", "protected", registers(rax=0x80000000), "to CR0, and PG needs PE"),
        ("0f 22 c0", "protected", registers(rax=0x80000001, efer=0x100), "long mode needs CR4.PAE"),
        ("0f 22 e0", "protected", registers(rax=0x8000_0000), "to CR4, which has a bit"),
        ("41 0f 22 d9", "long", registers(r9=0x123), "it moves 0x123 to CR3"),
        ("0f 30", "long", registers(rcx=0xDEAD), "it writes MSR 0xdead"),
        ("0f 32", "long", registers(rcx=0xDEAD), "it reads MSR 0xdead"),
        ("8e d8", "long", registers(rax=0x80), "it loads DS with 0x80, and the GDT at 0x500 is too short"),
        ("8e d0", "long", registers(rax=0x08), "it loads SS with 0x8, and the GDT has an empty entry"),
        ("0f 00 d8", "long", registers(rax=0x28), "it loads selector 0x28, and the GDT has an empty entry"),
        ("48 cf", "long", registers(rsp=0x9008), "it returns to code segment 0x80, and the GDT"),
        ("66 cb", "protected", registers(rsp=0x900E), "it returns to code segment 0x80, and the GDT"),
        ("ea 00 00 10 00 80 00", "protected", registers(), "it jumps to code segment 0x80, and the GDT"),
    ],
)
def test_the_instruction_at_rip_is_blamed(code: str, mode: str, change: Callable[[FakeVcpu], None], said: str) -> None:
    vcpu, memory = machine(bytes.fromhex(code) + b"\x90" * 9, mode)
    memory.write_u64(0x9010, 0x80)
    change(vcpu)
    assert said in likely(crash(vcpu, memory))


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("f7 f1", registers(rcx=7)),
        ("8e d8", registers(rax=0)),
        ("8e d8", registers(rax=0x18)),
        ("8e d8", registers(rax=0x84)),  # in the LDT, which is not looked at
        ("48 cf", registers(rsp=0x9008)),
        ("48 89 c3", registers()),
    ],
)
def test_an_instruction_that_may_be_sound_is_not_blamed(code: str, change: Callable[[FakeVcpu], None]) -> None:
    vcpu, memory = machine(bytes.fromhex(code) + b"\x90" * 9)
    memory.write_u64(0x9010, 0x10)
    change(vcpu)
    assert "first exception" not in likely(crash(vcpu, memory))


# --- Where RIP and RSP are -------------------------------------------------------------------


def place_rip(value: int) -> Callable[[FakeVcpu, GuestMemory], None]:
    return lambda vcpu, memory: setattr(vcpu.state, "rip", value)


def place_rsp(value: int) -> Callable[[FakeVcpu, GuestMemory], None]:
    return lambda vcpu, memory: setattr(vcpu.state, "rsp", value)


def unmap(entry: int, index: int) -> Callable[[FakeVcpu, GuestMemory], None]:
    """Clear one 2 MiB page of the identity map and move the stack or code there by the page's number."""
    return lambda vcpu, memory: memory.write_u64(TABLES + 0x2000 + 8 * index, entry)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([place_rip(0x40_0000_0000)], "RIP 0x4000000000 is not mapped: PDPTE not present"),
        ([place_rip(0x8000_0000_0000)], "not canonical"),
        ([place_rip(0x3000_0000)], "RIP 0x30000000 is outside RAM, which is 0x0 to 0x1fffff"),
        ([place_rip(0)], "jumped to address 0"),
        ([place_rip(0x510)], "RIP 0x510 is in the first page of memory"),
        ([place_rip(0), unmap(0, 0)], "jumped to address 0, which is not mapped"),
        ([place_rip(0x180000)], "memory full of zeroes"),
        ([lambda vcpu, memory: memory.write(CODE, b"\x7fELF\2\1\1")], "header of an ELF file"),
        ([place_rsp(0x30_0000)], "RSP 0x300000 is outside RAM"),
        ([place_rsp(0)], "nothing set up a stack"),
        ([place_rsp(0x60_0004), unmap(0, 3)], "RSP 0x600004 is outside RAM"),
        (
            [place_rsp(0x20_0000), unmap(0, 0)],
            "RSP 0x200000 is not mapped (PDE not present), while the page above it is",
        ),
        ([place_rsp(0x1000), unmap(0x81, 0)], "the page at RSP 0x1000 is read-only"),
    ],
)
def test_where_rip_and_rsp_are(changes: list[Callable[[FakeVcpu, GuestMemory], None]], said: str) -> None:
    vcpu, memory = machine()
    for change in changes:
        change(vcpu, memory)
    assert said in likely(crash(vcpu, memory))


def test_page_rights_at_rip() -> None:
    vcpu, memory = machine()
    vcpu.state.efer |= cpubits.EFER_NXE
    memory.write_u64(TABLES + 0x2000, 0x83 | 1 << 63)
    assert "may not be executed (XD)" in likely(crash(vcpu, memory))
    memory.write_u64(TABLES + 0x2000, 0x83)
    vcpu.state.ss = segments.Segment(0x2B, 0, 0xFFFFFFFF, 3, dpl=3, db=1, g=1)
    assert "ring 3 fetched from a page of the kernel" in likely(crash(vcpu, memory))
    vcpu.state.ss = segments.flat_data()
    vcpu.state.cr4 |= cpubits.CR4_SMEP
    for entry, value in ((TABLES, 0x2007), (TABLES + 0x1000, 0x3007), (TABLES + 0x2000, 0x87)):
        memory.write_u64(entry, value)
    assert "CR4.SMEP forbids" in likely(crash(vcpu, memory))


def test_code_of_another_mode() -> None:
    vcpu, memory = machine(b"\xfa\x31\xc0", mode="protected", at=0x7C00)
    memory.write(0x7DFE, b"\x55\xaa")
    assert "a boot sector is 16-bit code, but runs as 32-bit code: try --flat-mode real" in likely(crash(vcpu, memory))
    code = bytes.fromhex("48 89 e5 48 83 ec 10 48 8b 07 48 8d 35 00 00 00 00")
    vcpu, memory = machine(code, mode="protected")
    assert "looks like 64-bit code, but runs as 32-bit code" in likely(crash(vcpu, memory))
    assert "64-bit" not in likely(crash(*machine(code)))
    vcpu, memory = machine(mode="real", at=0x40)
    assert "called a BIOS" in likely(crash(vcpu, memory))
    vcpu, memory = machine(mode="real", at=0xFFFF0, code=b"\0")
    vcpu.state.cs = segments.real_segment(0xF000, segments.TYPE_CODE)
    vcpu.state.rip = 0xFFF0
    assert "where a PC has its BIOS: probably a reset" in likely(crash(vcpu, memory))


# --- KVM gave up, the processor refused ------------------------------------------------------


def test_a_refused_instruction_is_named_with_a_way_around() -> None:
    vcpu, memory = machine(b"\xf3\x48\x0f\xb8\xc3")
    text = likely(crash(vcpu, memory, InternalError(1, (), b"\xf3\x48\x0f\xb8\xc3" + b"\0" * 10)))
    assert "KVM had to emulate popcnt" in text
    assert "in ring 0 and cannot: build with -mno-popcnt" in text


def test_an_instruction_that_the_table_does_not_know() -> None:
    text = likely(crash(*machine(b"\x90"), InternalError(1, (), b"")))
    assert "does not know it" in text


def test_code_where_no_ram_is_cannot_be_run() -> None:
    vcpu, memory = machine()
    vcpu.state.rip = 0xFEC00000
    found = crash(vcpu, memory, InternalError(1, (), b"\x90" * 15))
    assert "RIP 0xfec00000 is outside RAM" in likely(found)
    assert "emulate" not in likely(found)
    assert "code at 0xfec00000:\n    <90> 90" in found.text()


def test_an_event_that_cannot_be_delivered() -> None:
    vcpu, memory = machine()
    vcpu.state.idt_base = 0x3000_0000
    assert "the IDT at 0x30000000 is not in RAM" in likely(crash(vcpu, memory, InternalError(3, (1, 2))))
    assert likely(crash(*machine(), InternalError(2, ()))) == ""


def flip(name: str, value: int) -> Callable[[FakeVcpu], None]:
    return lambda vcpu: setattr(vcpu.state, name, value)


def bend(segment: str, **fields: int) -> Callable[[FakeVcpu], None]:
    def change(vcpu: FakeVcpu) -> None:
        old = getattr(vcpu.state, segment)
        values = {name: getattr(old, name) for name in segments.Segment.__slots__} | fields
        setattr(vcpu.state, segment, segments.Segment(**values))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flip("cr0", 0x80000030), "CR0.PG is set without CR0.PE"),
        (flip("cr4", 0), "EFER.LMA is set without CR4.PAE"),
        (flip("efer", 0x100), "EFER.LMA is not LME and CR0.PG"),
        (flip("cr3", 1 << 53), "CR3 has bits set above 51"),
        (flip("rflags", 0), "RFLAGS bit 1 is clear"),
        (flip("rflags", 0x8002), "RFLAGS has reserved bits set (0x8000)"),
        (flip("gdt_limit", 0x10000), "GDTR has a limit over 16 bits"),
        (flip("idt_base", 1 << 47), "IDTR has a base that is not canonical"),
        (bend("cs", type=2), "CS has type 2"),
        (bend("cs", db=1), "CS has both L and D set"),
        (bend("cs", limit=0xFFFFF000), "CS counts in pages (G), but its limit does not end on one"),
        (bend("ss", type=1), "SS has type 1"),
        (bend("ds", present=0), "DS is not present"),
        (bend("es", g=0), "ES has a limit over 1 MiB without G"),
        (bend("tr", type=9), "TR has type 9, not that of a busy TSS"),
        (bend("tr", unusable=1), "TR is unusable"),
        (bend("ldt", unusable=0, type=3), "LDTR has type 3"),
    ],
)
def test_the_broken_rule_of_vm_entry_is_named(change: Callable[[FakeVcpu], None], said: str) -> None:
    vcpu, memory = machine()
    change(vcpu)
    text = likely(crash(vcpu, memory, FailEntry(0x80000021, 0)))
    assert f"the processor refused the guest's state (invalid guest state): {said}" in text


@pytest.mark.parametrize("mode", ["real", "protected", "long"])
def test_sound_states_break_no_rule(mode: str) -> None:
    text = likely(crash(*machine(mode=mode), FailEntry(0x80000022, 0)))
    assert text == "the processor refused to enter the guest: loading MSRs failed; no rule that pyvmm checks is broken"


def test_what_five_levels_and_linear_address_masking_allow_breaks_no_rule() -> None:
    vcpu, memory = machine(mode="long")
    vcpu.state.cr4 |= cpubits.CR4_LA57
    vcpu.state.cr3 |= cpubits.CR3_LAM
    vcpu.state.gdt_base = 0xFF00_0000_0000_0000
    assert "no rule that pyvmm checks is broken" in likely(crash(vcpu, memory, FailEntry(0x80000021, 0)))


def test_svm_and_unknown_failures() -> None:
    assert "VMEXIT_INVALID" in likely(crash(*machine(), FailEntry(0xFFFF_FFFF_FFFF_FFFF, 0)))
    assert "newer than pyvmm" in likely(crash(*machine(), Unknown(99)))


# --- No end ----------------------------------------------------------------------------------


def test_halted() -> None:
    vcpu, memory = machine(b"\xf4\xeb\xfd")
    vcpu.mp_state = KVM_MP_STATE_HALTED
    vcpu.state.rip = CODE + 1
    memory.write(CODE + 1, b"\0\0")  # nothing need follow a `hlt` that is for ever
    assert likely(stalled(vcpu, memory)).startswith("halted after a `hlt`, with interrupts off")
    vcpu.state.rflags |= cpubits.RFLAGS_IF
    assert likely(stalled(vcpu, memory)).startswith("halted with interrupts on")


def test_not_started() -> None:
    vcpu, memory = machine()
    vcpu.mp_state = KVM_MP_STATE_INIT_RECEIVED
    assert "never started" in likely(stalled(vcpu, memory))


def test_hypercall() -> None:
    assert "RIP is on a hypercall" in likely(stalled(*machine(b"\x0f\x01\xc1")))


def test_polling() -> None:
    polls = tuple(Pio(0x3FD, 1, 1, False, b"\x00") for _ in range(16))
    text = likely(stalled(*machine(), polls))
    assert text == "the guest polls: IO in port 0x3fd size 1 -> 0x00, again and again"
    dots = tuple(Pio(0xE9, 1, 1, True, b".") for _ in range(16))
    assert likely(stalled(*machine(), dots)).startswith("the guest was still making exits")
    mixed = tuple(Mmio(0xFEE00000 + at, 4, True, b"\0" * 4) for at in range(16))
    assert likely(stalled(*machine(), mixed)).startswith("the guest was still making exits")


def test_loops() -> None:
    assert "it jumps to itself" in likely(stalled(*machine(b"\xeb\xfe")))
    samples = (CODE, CODE + 4, CODE + 2, CODE + 4)
    assert likely(stalled(*machine(), (), samples)).startswith("a loop: 5 samples of RIP lie between 0x100000")
    assert likely(stalled(*machine(), (), (CODE, CODE + 0x8000, 0x1000, 0x2000))).startswith("the guest computes")


def test_a_stack_outside_ram_is_said_of_a_stalled_guest_too() -> None:
    vcpu, memory = machine(b"\xeb\xfe")
    vcpu.state.rsp = 0x30_0000
    assert "RSP 0x300000 is outside RAM" in likely(stalled(vcpu, memory))
    vcpu.state.rsp = 0  # as a started processor that uses no stack has it
    assert "RSP" not in likely(stalled(vcpu, memory))


def test_every_vcpu_of_a_stalled_guest_is_judged() -> None:
    first, memory = machine(b"\xeb\xfe")
    second, _ = machine()
    second.index, second.mp_state = 1, KVM_MP_STATE_HALTED
    found = build("time-limit", "x", [first, second], memory, [[], []])
    assert "likely (vcpu 0): an endless loop" in found.text()
    assert "likely (vcpu 1): halted" in found.text()
