"""Refused instructions completed in real guests: against this processor, through the guest's IDT, on two vCPUs at once.

Where KVM runs ring 0 on the processor itself nothing is refused; there the same guests show that nothing is completed.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm import VM, cpubits
from pyvmm.boot import segments, x86
from pyvmm.errors import UsageError
from pyvmm.kvm import Kvm
from pyvmm.kvm.assembly import add_memory, create_vcpus, create_vm
from pyvmm.kvm.completion import complete
from pyvmm.kvm.constants import KVM_MP_STATE_RUNNABLE
from pyvmm.kvm.exits import Exit, InternalError, Pio
from pyvmm.kvm.host import Host
from pyvmm.kvm.setup import apply_state
from pyvmm.memory import GuestMemory
from tests.support.cli import pyvmm
from tests.support.hostcpu import REGISTERS, STATUS_FLAGS, HostCpu

pytestmark = pytest.mark.needs("kvm")

QUIRKS = Host().quirks
REFUSES = bool(QUIRKS.ring0_emulated and QUIRKS.instructions_refused)
refusing = pytest.mark.skipif(not REFUSES, reason="this host's KVM refuses nothing")

TABLES, GDT, IDT, STACK, CODE, DATA = 0x1000, 0x500, 0x8000, 0x28000, 0x100000, 0x40000
HANDLERS = 0x9000
LIMIT = 10.0
DB, BP, UD, NM, GP, PF, MF = 1, 3, 6, 7, 13, 14, 16
SAYS_VECTOR = 0xE0
LEAVE = bytes.fromhex("e6e1 f4")
"""out 0xe1, al; hlt: the end of every guest here."""


class Ring0:
    """A VM in 64-bit mode at CODE, ring 0, whose every exception `v` writes `v` to port SAYS_VECTOR."""

    def __init__(self, count: int = 1, cpu: str = "host") -> None:
        self.memory = memory = GuestMemory.allocate([(0, 2 << 20)])
        memory.write(TABLES, x86.identity_page_tables(TABLES))
        memory.write(GDT, segments.gdt([segments.long_code(), segments.flat_data()]))
        selector = segments.CODE_SELECTOR
        for vector in range(32):
            handler = HANDLERS + 16 * vector
            gate = struct.pack("<HHBBHII", handler & 0xFFFF, selector, 0, 0x8E, handler >> 16, 0, 0)
            memory.write(IDT + 16 * vector, gate)
            memory.write(handler, bytes([0xB0, vector, 0xE6, SAYS_VECTOR, 0xF4]))  # mov al, vector; out; hlt
        self.state = x86.long_state(STACK, GDT, TABLES)
        self.state.rip = CODE
        self.state.idt_base, self.state.idt_limit = IDT, 32 * 16 - 1
        self.kvm = Kvm()
        self.vm = create_vm(self.kvm)
        add_memory(self.vm, memory.regions)
        self.vcpus = create_vcpus(self.kvm, self.vm, count, cpu, (), self.state)
        self.vcpu = self.vcpus[0]
        self.features: dict[str, bool] = {}

    def close(self) -> None:
        self.vm.close()
        self.kvm.close()
        self.memory.close()

    def begin(self, code: bytes, **registers: int) -> None:
        """Stand at `code`, with LEAVE behind it."""
        self.memory.write(CODE, code + LEAVE)
        regs = self.vcpu.get_regs()
        for name, value in {"rip": CODE, "rsp": STACK, "rflags": 2, **registers}.items():
            setattr(regs, name, value)
        self.vcpu.set_regs(regs)

    def run(self) -> Exit:
        timer = threading.Timer(LIMIT, self.vcpu.kick)
        timer.start()
        try:
            return self.vcpu.run()
        finally:
            timer.cancel()

    def complete(self) -> str:
        """Run up to the refused instruction and complete it; what `completed` says."""
        exit = self.run()
        assert isinstance(exit, InternalError), exit.describe()
        assert exit.insn_bytes
        assert complete(self.vcpu, exit, self.memory, self.features)
        return exit.completed

    def registers(self) -> dict[str, int]:
        regs = self.vcpu.get_regs()
        return {name: int(getattr(regs, name)) for name in REGISTERS} | {"rflags": int(regs.rflags) & STATUS_FLAGS}

    def complete_io(self) -> None:
        """Let KVM end the port write that it handed out last, so that the guest can begin anew."""
        self.vcpu.immediate_exit = True
        self.vcpu.run()
        self.vcpu.immediate_exit = False

    def leaves(self) -> bool:
        """Whether the guest runs on to LEAVE."""
        exit = self.run()
        return isinstance(exit, Pio) and exit.port == 0xE1

    def meets(self, vector: int) -> list[int]:
        """The guest's handler of `vector` runs next; what the processor pushed, from the top on."""
        exit = self.run()
        assert isinstance(exit, Pio) and exit.port == SAYS_VECTOR, exit.describe()
        assert exit.data[0] == vector
        top = self.vcpu.get_regs().rsp
        return [self.memory.read_u64(top + 8 * at) for at in range(6)]


@pytest.fixture
def guest() -> Iterator[Ring0]:
    made = Ring0()
    yield made
    made.close()


@pytest.fixture(scope="module")
def host() -> HostCpu:
    return HostCpu()


def random_registers(rng: random.Random) -> dict[str, int]:
    return {name: rng.getrandbits(rng.choice((64, 32, 8))) for name in REGISTERS} | {
        "rflags": rng.getrandbits(12) & STATUS_FLAGS
    }


SAME_AS_HOST = {
    "9b": "fwait", "f3480fb8c3": "popcnt", "f30fb8c3": "popcnt", "66f3450fb8c1": "popcnt", "f3480fb846f8": "popcnt",
    "480fc70e": "cmpxchg16b", "f0480fc70e": "cmpxchg16b",
}  # fmt: skip


@refusing
@pytest.mark.parametrize("code", SAME_AS_HOST)
def test_does_what_this_processor_does(guest: Ring0, host: HostCpu, code: str) -> None:
    rng = random.Random(code)
    at = 64  # where RSI points to in the data
    for turn in range(8):
        registers = random_registers(rng)
        data = bytearray(rng.randbytes(256))
        if turn % 2:
            data[at : at + 16] = struct.pack("<QQ", registers["rax"], registers["rdx"])
        host.data[:256] = bytes(data)
        there = host.run(bytes.fromhex(code), registers | {"rsi": host.address + at}) | {"rsi": DATA + at}
        guest.memory.write(DATA, data)
        guest.begin(bytes.fromhex(code), **registers | {"rsi": DATA + at, "rflags": registers["rflags"] | 2})
        assert guest.complete() == SAME_AS_HOST[code]
        assert guest.registers() == there
        assert guest.memory.read(DATA, 256) == host.data[:256]
        assert guest.leaves()
        guest.complete_io()


@refusing
def test_cmpxchg8b_is_completed_where_it_is_refused(guest: Ring0) -> None:
    """The KVM at hand emulates it, so the exit is made up; the rest is real."""
    guest.begin(bytes.fromhex("f00fc70e"), rsi=DATA, rax=5, rdx=6, rbx=7, rcx=8)
    guest.memory.write(DATA, struct.pack("<II", 5, 6))
    assert complete(guest.vcpu, InternalError(1, (), bytes.fromhex("f00fc70e")), guest.memory, {})
    assert guest.memory.read(DATA, 8) == struct.pack("<II", 7, 8)
    assert guest.registers()["rflags"] == cpubits.RFLAGS_ZF
    assert guest.leaves()


@refusing
def test_stac_and_clac(guest: Ring0) -> None:
    guest.begin(bytes.fromhex("0f01cb 0f01ca"))
    assert guest.complete() == "stac"
    assert guest.vcpu.get_regs().rflags & cpubits.RFLAGS_AC
    assert guest.complete() == "clac"
    assert not guest.vcpu.get_regs().rflags & cpubits.RFLAGS_AC
    assert guest.leaves()


@refusing
def test_rdtscp_lies_between_two_rdtsc() -> None:
    try:
        guest = Ring0(cpu="host,+rdtscp")
    except UsageError:
        guest = Ring0()
    try:
        # rdtsc; mov r8, rax; mov r9, rdx; rdtscp; mov r10, rax; mov r11, rdx; rdtsc
        code = "0f31 4989c0 4989d1 0f01f9 4989c2 4989d3 0f31"
        guest.begin(bytes.fromhex(code), rcx=0xFFFF_FFFF_FFFF_FFFF)
        guest.features["rdtscp"] = True  # KVM may have left it out of the guest's CPUID
        assert guest.complete() == "rdtscp"
        assert guest.leaves()
        after = guest.registers()
        before, at, later = (
            after[low] | after[high] << 32 for low, high in (("r8", "r9"), ("r10", "r11"), ("rax", "rdx"))
        )
        assert before < at < later
        assert later - before < 20 * guest.vcpu.get_tsc_khz() * 1000
        assert after["rcx"] == guest.vcpu.get_msrs([0xC0000103])[0xC0000103]
    finally:
        guest.close()


# --- Exceptions, as the guest's handlers meet them --------------------------------------------------------------------


@refusing
def test_int3_reaches_its_handler(guest: Ring0) -> None:
    guest.begin(b"\xcc", rflags=0x846)
    assert guest.complete() == "int3"
    rip, _, rflags, rsp, *_ = guest.meets(BP)
    assert (rip, rflags, rsp) == (CODE + 1, 0x846, STACK)


@refusing
def test_a_single_step_reaches_its_handler(guest: Ring0) -> None:
    # popf with TF set; popcnt rax, rbx
    guest.begin(bytes.fromhex("9d f3480fb8c3"), rsp=STACK - 8, rbx=7)
    guest.memory.write_u64(STACK - 8, 0x102)
    assert guest.complete() == "popcnt"
    rip, _, rflags, *_ = guest.meets(DB)
    assert (rip, rflags) == (CODE + 6, 0x102)
    assert guest.registers()["rbx"] == 7
    assert guest.vcpu.get_debugregs().dr6 & cpubits.DR6_BS


@refusing
@pytest.mark.parametrize(
    ("code", "registers", "name", "vector", "error"),
    [
        ("f3480fb806", {"rsi": 1 << 32}, "popcnt", PF, 0),
        ("f0480fc70e", {"rsi": 1 << 32}, "cmpxchg16b", PF, 2),
        ("f0480fc70e", {"rsi": DATA + 8}, "cmpxchg16b", GP, 0),
        ("f3480fb806", {"rsi": 1 << 62}, "popcnt", GP, 0),
        ("f0f3480fb806", {"rsi": DATA}, "popcnt", UD, None),
    ],
)
def test_faults_reach_their_handlers(
    guest: Ring0, code: str, registers: dict[str, int], name: str, vector: int, error: int | None
) -> None:
    guest.begin(bytes.fromhex(code), **registers)
    exit = guest.run()
    if isinstance(exit, Pio):  # KVM knows this fault itself
        assert exit.data[0] == vector
        return
    assert isinstance(exit, InternalError)
    assert complete(guest.vcpu, exit, guest.memory, guest.features)
    assert exit.completed == f"{name} ({ {PF: '#PF', GP: '#GP', UD: '#UD'}[vector] })"
    pushed = guest.meets(vector)
    if error is not None:
        assert pushed.pop(0) == error
    rip, _, rflags, rsp, *_ = pushed
    assert (rip, rflags, rsp) == (CODE, 2 | cpubits.RFLAGS_RF, STACK)
    if vector == PF:
        assert guest.vcpu.get_sregs().cr2 == 1 << 32


@refusing
def test_a_page_that_comes_and_goes(guest: Ring0) -> None:
    """The guest's own tables count: a page that its handler would map, then one that it makes read-only."""
    page, directory, table = DATA, 0x50000, 0x51000
    guest.memory.write_u64(TABLES + 4096 + 32, directory | 3)
    guest.memory.write_u64(directory, table | 3)
    guest.begin(bytes.fromhex("f3480fb806"), rsi=1 << 32)
    assert guest.complete() == "popcnt (#PF)"
    assert guest.meets(PF)[0] == 0
    guest.complete_io()
    guest.memory.write_u64(table, page | 3)
    guest.begin(bytes.fromhex("f0480fc70e"), rsi=1 << 32, rax=0, rbx=9)
    assert guest.complete() == "cmpxchg16b"
    assert guest.memory.read_u64(page) == 9
    assert guest.memory.read_u64(table) == page | 0x63
    assert guest.leaves()
    guest.complete_io()
    sregs = guest.vcpu.get_sregs()
    sregs.cr0 |= cpubits.CR0_WP
    guest.vcpu.set_sregs(sregs)
    guest.memory.write_u64(table, page | 0x61)
    guest.begin(bytes.fromhex("f0480fc70e"), rsi=1 << 32, rax=9, rbx=10)
    assert guest.complete() == "cmpxchg16b (#PF)"
    assert guest.meets(PF)[0] == 3
    assert guest.memory.read_u64(page) == 9


@refusing
def test_fwait_raises_what_is_pending(guest: Ring0) -> None:
    guest.begin(b"\x9b")
    fpu = guest.vcpu.get_fpu()
    fpu.fcw, fpu.fsw = 0x37B, 0x8084  # division by zero, unmasked
    guest.vcpu.set_fpu(fpu)
    assert guest.complete() == "fwait (#MF)"
    assert guest.meets(MF)[0] == CODE
    guest.complete_io()
    guest.begin(b"\x9b")
    sregs = guest.vcpu.get_sregs()
    sregs.cr0 |= cpubits.CR0_TS | cpubits.CR0_MP
    guest.vcpu.set_sregs(sregs)
    assert guest.complete() == "fwait (#NM)"
    assert guest.meets(NM)[0] == CODE


@refusing
def test_what_cpuid_lacks_is_an_invalid_opcode() -> None:
    guest = Ring0(cpu="host,-cx16")
    try:
        guest.begin(bytes.fromhex("480fc70e"), rsi=DATA)
        assert guest.complete() == "cmpxchg16b (#UD)"
        assert guest.meets(UD)[0] == CODE
    finally:
        guest.close()


# --- Two vCPUs --------------------------------------------------------------------------------------------------------

# Add 1 to both halves at [rdi], rsi times:
#    mov rax, [rdi]; mov rdx, [rdi+8]; 1: mov rbx, rax; inc rbx; mov rcx, rdx; inc rcx; lock cmpxchg16b [rdi]; jne 1b;
#    mov rax, rbx; mov rdx, rcx; dec rsi; jne 1b
ADD_PAIR = bytes.fromhex("488b07 488b5708 4889c3 48ffc3 4889d1 48ffc1 f0480fc70f 75ed 4889d8 4889ca 48ffce 75e2")
# The same to the low half, by an instruction that KVM emulates: 1: lock inc qword [rdi]; dec rsi; jne 1b
ADD_LOW = bytes.fromhex("f048ff07 48ffce 75f7")
TURNS = 1000


@pytest.mark.parametrize("second", [ADD_PAIR, ADD_LOW], ids=["cmpxchg16b", "lock-inc"])
def test_two_vcpus_lose_no_increment(second: bytes) -> None:
    guest = Ring0(count=2, cpu="host,+cx16")
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that anything made of several steps in Python is interrupted between them
    try:
        codes = (ADD_PAIR, second)
        turns = (TURNS, TURNS if second is ADD_PAIR else TURNS * 20)
        for index, vcpu in enumerate(guest.vcpus):
            guest.memory.write(CODE + index * 4096, codes[index] + LEAVE)
            guest.state.rip, guest.state.rdi, guest.state.rsi = CODE + index * 4096, DATA, turns[index]
            apply_state(vcpu, guest.state)
            vcpu.set_mp_state(KVM_MP_STATE_RUNNABLE)
        ends: list[Exit] = []
        completed = [0, 0]

        def run(index: int) -> None:
            vcpu = guest.vcpus[index]
            features: dict[str, bool] = {}
            while True:
                exit = vcpu.run()
                if isinstance(exit, InternalError) and complete(vcpu, exit, guest.memory, features):
                    completed[index] += 1
                    continue
                ends.append(exit)
                return

        threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
        timers = [threading.Timer(2 * LIMIT, vcpu.kick) for vcpu in guest.vcpus]
        for thread in (*threads, *timers):
            thread.start()
        for thread in threads:
            thread.join(3 * LIMIT)
        for timer in timers:
            timer.cancel()
        assert [type(end) for end in ends] == [Pio, Pio], [end.describe() for end in ends]
        low, high = guest.memory.read_u64(DATA), guest.memory.read_u64(DATA + 8)
        assert (low, high) == (sum(turns), TURNS * codes.count(ADD_PAIR))
        assert (completed[0] >= TURNS) == REFUSES
    finally:
        sys.setswitchinterval(before)
        guest.close()


# --- The whole of pyvmm -----------------------------------------------------------------------------------------------

# mov ebx, 0xff; popcnt eax, ebx; fwait; lea rsi, [rsp]; and rsi, -16; lock cmpxchg16b [rsi]; popcnt eax, ebx;
# out 0xf4, al
PROGRAM = bytes.fromhex("bbff000000 f30fb8c3 9b 488d3424 4883e6f0 f0480fc70e f30fb8c3 e6f4 f4")
WANTED = {"popcnt": 2, "fwait": 1, "cmpxchg16b": 1} if REFUSES else {}


def test_a_run_completes_what_this_host_refuses_and_counts_it(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel.bin"
    # RBX is 0xff or, after an exchange, what it was; either way popcnt gives 8.
    kernel.write_bytes(PROGRAM)
    with VM(kernel, flat_mode="long", mem="2M", cpu="host,+cx16", timeout=LIMIT) as vm:
        outcome = vm.wait(LIMIT * 2)
        assert (outcome.reason, outcome.status) == ("debug-exit", 17), outcome
        assert vm.stats.completed == WANTED
        assert vm.stats.exits.get("INTERNAL_ERROR", 0) == sum(WANTED.values())


def test_the_command_says_so_and_can_leave_it_out(tmp_path: Path) -> None:
    kernel, report = tmp_path / "kernel.bin", tmp_path / "report.json"
    kernel.write_bytes(PROGRAM)
    words = ("run", kernel, "--flat-mode", "long", "--mem", "2M", "--cpu", "host,+cx16", "--timeout", "20s")
    done = pyvmm(*words, "--stats", "--report", report)
    assert done.returncode == 17, done.stderr
    found = json.loads(report.read_text())
    assert found["completed"] == WANTED
    line = b"pyvmm: completed  cmpxchg16b 1, fwait 1, popcnt 2: instructions that KVM refused"
    assert (line in done.stderr.splitlines()) == REFUSES
    done = pyvmm(*words, "--no-host-quirks")
    assert done.returncode == (121 if REFUSES else 17)
    assert (b"KVM had to emulate popcnt" in done.stderr) == REFUSES


@refusing
def test_what_was_completed_is_among_the_last_exits_of_a_crash_report(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel.bin"
    kernel.write_bytes(bytes.fromhex("f30fb8c3 0f01d0"))  # popcnt; xgetbv
    done = pyvmm("run", kernel, "--flat-mode", "long", "--mem", "2M", "--timeout", "20s")
    text = done.stderr.decode()
    assert done.returncode == 121
    assert "pyvmm completed it: popcnt" in text
    assert "KVM had to emulate xgetbv" in text
    assert "KVM had to emulate popcnt" not in text
