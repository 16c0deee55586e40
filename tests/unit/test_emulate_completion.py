"""Completed instructions against this machine's own processor, and against the manual where it cannot be asked.

The vCPU is a model that stands still; tests/kvm/test_emulate.py does the same with KVM's.
"""

from __future__ import annotations

import random
import struct
from types import SimpleNamespace

import pytest

from pyvmm import cpubits as bits
from pyvmm.boot import segments
from pyvmm.kvm.completion import COMPLETED, complete
from pyvmm.kvm.cpufeatures import feature_bits
from pyvmm.kvm.entries import CpuidEntry
from pyvmm.kvm.exits import KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, InternalError
from pyvmm.memory import GuestMemory
from pyvmm.paging import ACCESSED, DIRTY, PRESENT, USER, WRITABLE
from tests.support.fakevcpu import CODE, TABLES, FakeVcpu, machine
from tests.support.hostcpu import REGISTERS, STATUS_FLAGS, HostCpu, available

DATA = 0x20000
"""Where operands lie: both the gva and the gpa, unless a test maps something else."""
PAGE_TABLE = 0x30000
HIGH = 1 << 32
"""The first gva that the loader's tables leave free; `map_page` puts pages there."""
MASK = (1 << 64) - 1
DB, BP, UD, NM, SS, GP, PF, MF = 1, 3, 6, 7, 12, 13, 14, 16
FEATURES = ("cx8", "cx16", "popcnt", "rdtscp", "smap")


class Vcpu(FakeVcpu):
    """A FakeVcpu that can be changed, with a debug register, an FPU, MSRs and CPUID."""

    def __init__(self, state, features=FEATURES):
        super().__init__(state)
        self.dr6 = 0xFFFF0FF0
        self.fpu = SimpleNamespace(fcw=0x37F, fsw=0)
        self.msrs = {0x10: 0x1122334455667788, 0xC0000103: 0x12345}
        self.shadow = 0
        self.pending_nmi_written = False
        self.features = features

    @property
    def raised(self):
        """The exception that the guest will meet: vector and error code."""
        return self.exception

    def set_regs(self, regs):
        for name, value in vars(regs).items():
            assert 0 <= value <= MASK, name
            setattr(self.state, name, value)

    def set_sregs(self, sregs):
        self.cr2 = sregs.cr2

    def get_vcpu_events(self):
        events = super().get_vcpu_events()
        events.interrupt = SimpleNamespace(shadow=self.shadow)
        events.flags = 0xD
        return events

    def set_vcpu_events(self, events):
        assert events.flags == 4  # the shadow; nothing that another thread may have changed meanwhile
        exception = events.exception
        self.shadow = events.interrupt.shadow
        self.exception = None
        if exception.injected:
            self.exception = (exception.nr, exception.error_code if exception.has_error_code else None)

    def get_debugregs(self):
        return SimpleNamespace(dr6=self.dr6)

    def set_debugregs(self, debug):
        self.dr6 = debug.dr6

    def get_fpu(self):
        return self.fpu

    def get_msrs(self, indices):
        return {index: self.msrs[index] for index in indices if index in self.msrs}

    def get_cpuid2(self):
        rows = {}
        for feature in self.features:
            ((leaf, subleaf, register, bit),) = feature_bits()[feature]
            row = rows.setdefault((leaf, subleaf), {"eax": 0, "ebx": 0, "ecx": 0, "edx": 0})
            row[register] |= 1 << bit
        return [CpuidEntry(leaf, subleaf, 0, **row) for (leaf, subleaf), row in rows.items()]


class Guest:
    """A machine that stands at `code`, which is hex."""

    def __init__(self, code, mode="long", features=FEATURES, **registers):
        self.code = bytes.fromhex(code)
        plain, self.memory = machine(self.code, mode, at=0x1000 if mode == "real" else CODE)
        self.vcpu = Vcpu(plain.state, features)
        self.state = self.vcpu.state
        self.exit = InternalError(KVM_INTERNAL_ERROR_EMULATION, (), self.code + b"\x90" * (15 - len(self.code)))
        for name, value in registers.items():
            setattr(self.state, name, value)

    def complete(self):
        return complete(self.vcpu, self.exit, self.memory, {})

    def registers(self):
        values = {name: getattr(self.state, name) for name in REGISTERS}
        return values | {"rflags": self.state.rflags & STATUS_FLAGS}

    def meets(self, vector, error_code=None):
        """Whether completing raises this exception at the instruction itself, with nothing else changed."""
        before = self.registers()
        assert self.complete()
        assert self.vcpu.raised == (vector, error_code)
        assert self.state.rip == CODE
        assert self.state.rflags & bits.RFLAGS_RF
        assert self.registers() == before
        return True


def map_page(memory: GuestMemory, gva: int, gpa: int, flags: int) -> int:
    """Map one page at HIGH or the pages after it; gives the gpa of its entry."""
    link = PRESENT | WRITABLE | USER
    memory.write_u64(TABLES, memory.read_u64(TABLES) | USER)
    memory.write_u64(TABLES + 4096 + 4 * 8, PAGE_TABLE | link)
    memory.write_u64(PAGE_TABLE, PAGE_TABLE + 4096 | link)
    entry = PAGE_TABLE + 4096 + (gva - HIGH) // 4096 * 8
    memory.write_u64(entry, gpa | flags)
    return entry


# --- Against this processor ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host():
    if not available():
        pytest.skip("this machine's processor is no x86-64")
    return HostCpu()


def random_registers(rng):
    values = {name: rng.choice((rng.getrandbits(64), rng.getrandbits(32), rng.getrandbits(3), 0)) for name in REGISTERS}
    return values | {"rflags": rng.getrandbits(12) & STATUS_FLAGS}


POPCNTS = (
    "f3480fb8c3",
    "f30fb8c3",
    "66f30fb8c3",
    "f34d0fb8fe",
    "66f3450fb8c0",
    "f3480fb8c0",
    "66f30fb8f9",
    "f3410fb8ec",
)


@pytest.mark.parametrize("code", POPCNTS)
def test_popcnt_of_registers(host: HostCpu, code: str) -> None:
    rng = random.Random(code)
    for _ in range(40):
        registers = random_registers(rng)
        guest = Guest(code, **registers | {"rflags": registers["rflags"] | 2})
        assert guest.complete()
        assert guest.registers() == host.run(guest.code, registers)
        assert guest.state.rip == CODE + len(guest.code)
        guest.memory.close()


# What is at [rsi], after which 16 bytes further [rsi + rcx*8 - 16] and [rdi + 0x10], with rcx 4 and rdi = rsi.
OPERANDS = {"06": 0, "44cef0": 16, "4710": 16, "863f000000": 63}
"""ModRM, SIB and displacement of what names memory, with reg 0; and how far from RSI that is."""


def with_operand(opcode: str, operand: str, reg: int = 0) -> str:
    head = bytes.fromhex(operand)
    return opcode + (bytes([head[0] | reg << 3]) + head[1:]).hex()


def run_both(host: HostCpu, code: str, registers: dict[str, int], data: bytes) -> tuple[Guest, dict[str, int], bytes]:
    """Complete `code` and run it on the host, with RSI at 256 bytes of `data` and RDI too, RCX as it comes."""
    host.data[: len(data)] = data
    there = host.run(bytes.fromhex(code), registers | {"rsi": host.address, "rdi": host.address})
    assert (there["rsi"], there["rdi"]) == (host.address, host.address)
    guest = Guest(code, **registers | {"rsi": DATA, "rdi": DATA, "rflags": registers["rflags"] | 2})
    guest.memory.write(DATA, data)
    assert guest.complete(), code
    assert guest.vcpu.raised is None
    assert guest.state.rip == CODE + len(guest.code)
    return guest, there | {"rsi": DATA, "rdi": DATA}, host.data[: len(data)]


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("prefix", ["f348", "f3", "66f3", "f34c"])
def test_popcnt_of_memory(host: HostCpu, prefix: str, operand: str) -> None:
    rng = random.Random(prefix + operand)
    for _ in range(10):
        registers = random_registers(rng) | {"rcx": 4}
        code = with_operand(prefix + "0fb8", operand, reg=2)
        guest, after, memory = run_both(host, code, registers, rng.randbytes(256))
        assert guest.registers() == after
        assert guest.memory.read(DATA, 256) == memory
        guest.memory.close()


@pytest.mark.parametrize("operand", ["06", "44cef0", "4710"])
@pytest.mark.parametrize("prefix", ["f048", "48", "f0", ""])
def test_cmpxchg(host: HostCpu, prefix: str, operand: str) -> None:
    """8 and 16 bytes, with LOCK and without, where memory is what was expected and where it is not."""
    rng = random.Random(prefix + operand)
    wide = "48" in prefix
    half = 8 if wide else 4
    equal = 0
    for turn in range(24):
        registers = random_registers(rng) | ({"rcx": 4} if operand == "44cef0" else {})
        data = bytearray(rng.randbytes(256))
        if turn % 2:
            at = OPERANDS[operand]
            low, high = (registers[name] & (1 << half * 8) - 1 for name in ("rax", "rdx"))
            data[at : at + 2 * half] = low.to_bytes(half, "little") + high.to_bytes(half, "little")
            if turn % 6 == 1:
                data[at + half] ^= 1  # one half is not enough
        guest, after, memory = run_both(host, with_operand(prefix + "0fc7", operand, 1), registers, bytes(data))
        assert guest.registers() == after
        assert guest.memory.read(DATA, 256) == memory
        equal += after["rflags"] >> 6 & 1
        guest.memory.close()
    assert equal == 8


@pytest.mark.parametrize("offset", [1, 3, 7, 44, 56])
def test_cmpxchg8b_at_odd_addresses(host: HostCpu, offset: int) -> None:
    rng = random.Random(offset)
    data = rng.randbytes(256)
    low, high = struct.unpack("<II", data[offset : offset + 8])
    for registers in ({"rax": low, "rdx": high | 5 << 32}, {"rax": low, "rdx": high ^ 8}):
        code = f"f00fc74e{offset:02x}"
        guest, after, memory = run_both(host, code, registers | {"rbx": 7, "rcx": 9 << 32, "rflags": 0}, data)
        assert guest.registers() == after
        assert guest.memory.read(DATA, 256) == memory
        guest.memory.close()


def test_fwait_and_rdtscp_change_what_the_processor_changes(host: HostCpu) -> None:
    registers = random_registers(random.Random(1))
    guest = Guest("9b", **registers | {"rflags": registers["rflags"] | 2})
    assert guest.complete()
    assert guest.registers() == host.run(b"\x9b", registers)
    guest = Guest("0f01f9", **registers | {"rflags": registers["rflags"] | 2})
    assert guest.complete()
    there = host.run(b"\x0f\x01\xf9", registers)
    changed = {"rax": 0x55667788, "rdx": 0x11223344, "rcx": 0x12345}
    assert guest.registers() == there | changed
    assert all(there[name] >> 32 == 0 for name in changed)


# --- What the host cannot be asked: privileged ones, exceptions, other modes ----------------------------------------


def test_stac_and_clac() -> None:
    guest = Guest("0f01cb", rflags=0x246)
    assert guest.complete()
    assert (guest.state.rflags, guest.state.rip, guest.exit.completed) == (0x40246, CODE + 3, "stac")
    guest = Guest("0f01ca", rflags=0x40246)
    assert guest.complete()
    assert (guest.state.rflags, guest.state.rip, guest.exit.completed) == (0x246, CODE + 3, "clac")


@pytest.mark.parametrize("mode", ["long", "protected", "real"])
def test_int3_is_a_trap(mode: str) -> None:
    guest = Guest("cc", mode, rflags=0x246)
    rip = guest.state.rip
    assert guest.complete()
    assert guest.vcpu.raised == (BP, None)
    assert (guest.state.rip, guest.state.rflags) == (rip + 1, 0x246)


def test_int3_above_ring_0_is_left_alone() -> None:
    guest = Guest("cc")
    user(guest)
    assert not guest.complete()


def test_fwait_raises_what_is_pending() -> None:
    assert Guest("9b", cr0=0x80000031 | bits.CR0_MP | bits.CR0_TS).meets(NM)
    for cr0 in (bits.CR0_TS, bits.CR0_MP):
        guest = Guest("9b", cr0=0x80000031 | cr0)
        assert guest.complete() and guest.vcpu.raised is None
    guest = Guest("9b")
    guest.vcpu.fpu = SimpleNamespace(fcw=0x37F & ~4, fsw=0x8004 | 0x80)
    assert guest.meets(MF)
    guest.vcpu.exception = None
    guest.state.cr0 &= ~bits.CR0_NE
    assert not guest.complete()  # IRQ 13 is another way
    guest.vcpu.fpu = SimpleNamespace(fcw=0x37F, fsw=4)  # masked
    assert guest.complete()


def test_rdtscp_in_user_code() -> None:
    guest = Guest("0f01f9")
    user(guest)
    assert guest.complete() and guest.vcpu.raised is None
    guest = Guest("0f01f9", cr4=bits.CR4_PAE | bits.CR4_TSD)
    user(guest)
    assert guest.meets(GP, 0)
    guest = Guest("0f01f9", cr4=bits.CR4_PAE | bits.CR4_TSD)
    assert guest.complete() and guest.vcpu.raised is None
    del guest.vcpu.msrs[0x10]
    assert not guest.complete()


INSTRUCTIONS = {
    "int3": "cc", "fwait": "9b", "stac": "0f01cb", "clac": "0f01ca", "popcnt": "f3480fb8c3",
    "cmpxchg8b": "0fc70e", "cmpxchg16b": "480fc70e", "rdtscp": "0f01f9",
}  # fmt: skip


@pytest.mark.parametrize("name", COMPLETED)
def test_the_end_of_an_instruction(name: str) -> None:
    """RIP is behind it, RF and the interrupt shadow are gone, a single step is told."""
    code = INSTRUCTIONS[name]
    guest = Guest(code, rsi=DATA, rflags=0x202 | bits.RFLAGS_RF)
    guest.vcpu.shadow = 1
    assert guest.complete()
    assert guest.exit.completed == name
    assert name in guest.exit.describe() and "completed" in guest.exit.describe()
    assert guest.state.rip == CODE + len(guest.code)
    assert not guest.state.rflags & bits.RFLAGS_RF
    assert guest.vcpu.shadow == 0
    guest = Guest(code, rsi=DATA, rflags=0x202 | bits.RFLAGS_TF)
    assert guest.complete()
    # The trap of INT3 is its own, and its handler runs without TF (SDM volume 3B, 18.3.1.4).
    assert guest.vcpu.raised == ((BP, None) if name == "int3" else (DB, None))
    assert bool(guest.vcpu.dr6 & bits.DR6_BS) == (name != "int3")


@pytest.mark.parametrize("name", ["stac", "clac", "popcnt", "cmpxchg8b", "cmpxchg16b", "rdtscp"])
def test_a_missing_feature_is_an_invalid_opcode(name: str) -> None:
    guest = Guest(INSTRUCTIONS[name], features=(), rsi=DATA)
    assert guest.meets(UD)
    assert guest.exit.completed == f"{name} (#UD)"


@pytest.mark.parametrize("name", ["int3", "fwait", "stac", "clac", "popcnt", "rdtscp"])
def test_a_lock_prefix_is_an_invalid_opcode(name: str) -> None:
    assert Guest("f0" + INSTRUCTIONS[name]).meets(UD)


def test_stac_and_clac_are_for_ring_0() -> None:
    for name in ("stac", "clac"):
        guest = Guest(INSTRUCTIONS[name])
        user(guest)
        assert guest.meets(UD)


def test_features_are_looked_up_once() -> None:
    guest = Guest("f3480fb8c3")
    known: dict[str, bool] = {}
    assert complete(guest.vcpu, guest.exit, guest.memory, known)
    assert known == {"popcnt": True}
    guest.vcpu.features = ()
    guest.state.rip = CODE
    assert complete(guest.vcpu, guest.exit, guest.memory, known) and guest.vcpu.raised is None


# --- Memory operands ------------------------------------------------------------------------------------------------


def user(guest: Guest) -> None:
    """Put the guest into ring 3."""
    guest.state.ss = segments.flat_data()
    guest.state.ss.dpl = 3


POPCNT, CMPXCHG = "f3480fb806", "f0480fc70e"  # of [rsi]
READ_ONLY = PRESENT | ACCESSED | DIRTY
WP, SMAP, AC = bits.CR0_WP, bits.CR4_SMAP, bits.RFLAGS_AC


@pytest.mark.parametrize(
    ("code", "flags", "ring", "cr0", "cr4", "rflags", "error"),
    [
        # The error code: 1 present, 2 write, 4 user, 8 reserved bit (SDM volume 3A, 4.7); None: no fault.
        (POPCNT, 0, 0, 0, 0, 0, 0),
        (CMPXCHG, 0, 0, 0, 0, 0, 2),
        (POPCNT, 0, 3, 0, 0, 0, 4),
        (CMPXCHG, 0, 3, 0, 0, 0, 6),
        (POPCNT, READ_ONLY, 0, WP, 0, 0, None),
        (CMPXCHG, READ_ONLY, 0, 0, 0, 0, None),
        (CMPXCHG, READ_ONLY, 0, WP, 0, 0, 3),
        (CMPXCHG, READ_ONLY | WRITABLE, 0, WP, 0, 0, None),
        (POPCNT, READ_ONLY, 3, 0, 0, 0, 5),
        (POPCNT, READ_ONLY | USER, 3, 0, 0, 0, None),
        (CMPXCHG, READ_ONLY | USER, 3, 0, 0, 0, 7),
        (CMPXCHG, READ_ONLY | USER | WRITABLE, 3, WP, 0, 0, None),
        (POPCNT, READ_ONLY | USER, 0, 0, SMAP, 0, 1),
        (POPCNT, READ_ONLY | USER, 0, 0, SMAP, AC, None),
        (POPCNT, READ_ONLY | USER, 0, 0, 0, 0, None),
        (POPCNT, READ_ONLY, 0, 0, SMAP, 0, None),
        (CMPXCHG, READ_ONLY | USER | WRITABLE, 0, WP, SMAP, 0, 3),
        (CMPXCHG, READ_ONLY | USER | WRITABLE, 0, WP, SMAP, AC, None),
        (POPCNT, READ_ONLY | 1 << 63, 0, 0, 0, 0, 9),  # XD while EFER.NXE is off
        (CMPXCHG, READ_ONLY | WRITABLE | 1 << 63, 3, 0, 0, 0, 15),
    ],
)
def test_page_faults(code: str, flags: int, ring: int, cr0: int, cr4: int, rflags: int, error: int | None) -> None:
    guest = Guest(code, rsi=HIGH + 0x120, rflags=2 | rflags)
    map_page(guest.memory, HIGH, DATA, flags)
    guest.state.cr0 |= cr0
    guest.state.cr4 |= cr4
    if ring:
        user(guest)
    if error is not None:
        assert guest.meets(PF, error)
        assert guest.vcpu.cr2 == HIGH + 0x120
        assert guest.exit.completed.endswith("(#PF)")
        assert guest.memory.read(DATA, 4096) == bytes(4096)
    else:
        assert guest.complete()
        assert guest.vcpu.raised is None


def test_accessed_and_dirty_flags() -> None:
    for code, wanted in ((POPCNT, ACCESSED), (CMPXCHG, ACCESSED | DIRTY)):
        guest = Guest(code, rsi=HIGH)
        entry = map_page(guest.memory, HIGH, DATA, PRESENT | WRITABLE)
        before = guest.memory.read_u64(entry)
        tables = (TABLES, TABLES + 4096 + 32, PAGE_TABLE)
        assert guest.complete()
        assert guest.memory.read_u64(entry) == before | wanted
        assert all(guest.memory.read_u64(gpa) & (ACCESSED | DIRTY) == ACCESSED for gpa in tables)


def test_accessed_and_dirty_flags_of_32_bit_paging() -> None:
    guest = Guest("f00fc70e", "protected", rsi=0x1000)
    guest.state.cr0 |= bits.CR0_PG
    guest.state.cr3 = PAGE_TABLE
    guest.memory.write_u32(PAGE_TABLE, PAGE_TABLE + 4096 | PRESENT | WRITABLE)
    guest.memory.write_u32(PAGE_TABLE + 4096 + 4, DATA | PRESENT | WRITABLE)
    guest.memory.write_u32(PAGE_TABLE + 4096, 0x89ABC000)  # the neighbours are left alone
    guest.memory.write_u32(PAGE_TABLE + 4096 + 8, 0x12345000)
    assert guest.complete() and guest.vcpu.raised is None
    assert guest.memory.read_u32(PAGE_TABLE) == PAGE_TABLE + 4096 | PRESENT | WRITABLE | ACCESSED
    assert guest.memory.read_u32(PAGE_TABLE + 4096 + 4) == DATA | PRESENT | WRITABLE | ACCESSED | DIRTY
    assert guest.memory.read_u64(PAGE_TABLE + 4096) & 0xFFFF_FFFF == 0x89ABC000
    assert guest.memory.read_u32(PAGE_TABLE + 4096 + 8) == 0x12345000


def test_accessed_flags_of_pae_paging() -> None:
    guest = Guest("f30fb806", "protected", rsi=0x5000)
    guest.state.cr0 |= bits.CR0_PG
    guest.state.cr3, guest.state.cr4 = PAGE_TABLE, bits.CR4_PAE
    link = PRESENT | WRITABLE
    for gpa, entry in (
        (0, (PAGE_TABLE + 4096) | PRESENT),
        (4096, (PAGE_TABLE + 8192) | link),
        (8192 + 40, DATA | link),
    ):
        guest.memory.write_u64(PAGE_TABLE + gpa, entry)
    guest.memory.write(DATA, b"\x07")
    assert guest.complete() and guest.vcpu.raised is None
    assert guest.state.rax == 3
    assert guest.memory.read_u64(PAGE_TABLE) == (PAGE_TABLE + 4096) | PRESENT  # has no flags (4.4.2)
    assert guest.memory.read_u64(PAGE_TABLE + 4096) == (PAGE_TABLE + 8192) | link | ACCESSED
    assert guest.memory.read_u64(PAGE_TABLE + 8192 + 40) == DATA | link | ACCESSED


def test_an_entry_that_changes_meanwhile_is_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(CMPXCHG, rsi=HIGH, rbx=1)
    entry = map_page(guest.memory, HIGH, DATA, PRESENT | WRITABLE)
    walk = type(guest.memory).read_u64

    def read(memory: GuestMemory, gpa: int) -> int:
        value = walk(memory, gpa)
        if gpa == entry and value & PRESENT:
            memory.write_u64(entry, 0xABC000)  # swapped out by another processor, just now
        return value

    monkeypatch.setattr(GuestMemory, "read_u64", read)
    assert guest.complete()
    assert guest.exit.completed == "cmpxchg16b (begun anew)"
    assert (guest.state.rip, guest.vcpu.raised) == (CODE, None)
    assert walk(guest.memory, entry) == 0xABC000
    assert guest.memory.read(DATA, 16) == bytes(16)


def test_a_read_over_two_pages() -> None:
    guest = Guest(POPCNT, rsi=HIGH + 4096 - 3)
    map_page(guest.memory, HIGH, DATA, READ_ONLY)
    second = map_page(guest.memory, HIGH + 4096, 0x50000, 0)
    guest.memory.write(DATA + 4096 - 3, b"\x01\x03\x07")
    guest.memory.write(0x50000, b"\x0f\x00\x00\x01\x80\xff")
    assert guest.meets(PF, 0)
    assert guest.vcpu.cr2 == HIGH + 4096  # where the access met what is not there (4.7)
    guest.memory.write_u64(second, 0x50000 | READ_ONLY)
    guest.vcpu.exception = None
    assert guest.complete() and guest.vcpu.raised is None
    assert guest.state.rax == 1 + 2 + 3 + 4 + 0 + 0 + 1 + 1


def test_addresses_that_are_none() -> None:
    for address in (1 << 47, (1 << 47) - 4, MASK ^ 1 << 47, 0x1234 << 48):
        assert Guest(POPCNT, rsi=address).meets(GP, 0)
    # With 5-level paging bit 56 is the sign, and 1 << 47 an address like others: one that is not mapped.
    assert Guest(POPCNT, rsi=1 << 47, cr4=bits.CR4_PAE | bits.CR4_LA57).meets(PF, 0)
    assert Guest(POPCNT, rsi=1 << 56, cr4=bits.CR4_PAE | bits.CR4_LA57).meets(GP, 0)
    assert Guest("f3480fb84500", rbp=1 << 47).meets(SS, 0)
    assert Guest("f3480fb80424", rsp=1 << 62).meets(SS, 0)
    assert Guest(CMPXCHG, rsi=DATA + 8).meets(GP, 0)
    assert Guest("480fc74d08", rbp=DATA).meets(GP, 0)  # not aligned is #GP on the stack too


def test_addresses_relative_to_rip_count_from_the_next_instruction() -> None:
    for code, at in (("f30fb80510000000", CODE + 8 + 16), ("67f30fb805f8ffffff", CODE + 9 - 8)):
        guest = Guest(code)
        value = guest.memory.read_u32(at) | 0x8000_0000
        guest.memory.write_u32(at, value)
        guest.exit.insn_bytes = guest.code
        assert guest.complete() and guest.vcpu.raised is None
        assert guest.state.rax == value.bit_count()


@pytest.mark.parametrize("mode", ["long", "protected"])
def test_segment_bases(mode: str) -> None:
    for prefix, name in ((0x64, "fs"), (0x65, "gs"), (0x26, "es"), (0x3E, "ds")):
        guest = Guest(bytes([prefix]).hex() + "f30fb806", mode, rsi=0x100)
        segment = segments.flat_data()
        segment.base = DATA
        setattr(guest.state, name, segment)
        guest.memory.write(DATA + 0x100, b"\xff")
        assert guest.complete() and guest.vcpu.raised is None
        # In 64-bit mode only FS and GS have a base (SDM volume 3A, 3.4.4).
        assert guest.state.rax == (8 if mode == "protected" or name in ("fs", "gs") else 0)


@pytest.mark.parametrize(
    ("type", "limit", "db", "unusable", "offset", "write", "allowed"),
    [
        (3, 0xFFFF, 1, 0, 0xFFF8, True, True),
        (3, 0xFFFF, 1, 0, 0xFFFD, False, False),
        (3, 0xFFFF, 1, 0, 0xFFFF_FFFC, False, False),
        (1, 0xFFFF, 1, 0, 0x100, False, True),  # read-only data
        (1, 0xFFFF, 1, 0, 0x100, True, False),
        (11, 0xFFFF, 1, 0, 0x100, False, True),  # code that may be read
        (11, 0xFFFF, 1, 0, 0x100, True, False),
        (9, 0xFFFF, 1, 0, 0x100, False, False),  # code that may not
        (7, 0xFFFF, 1, 0, 0xFFFF, False, False),  # expand-down: above the limit is what there is
        (7, 0xFFFF, 1, 0, 0x10000, True, True),
        (7, 0xFFFF, 1, 0, 0xFFFF_FFFD, False, False),
        (7, 0x0FFF, 0, 0, 0xFFF8, True, True),
        (7, 0x0FFF, 0, 0, 0xFFF9, True, False),
        (5, 0x0FFF, 0, 0, 0x2000, False, True),
        (5, 0x0FFF, 0, 0, 0x2000, True, False),
        (3, 0xFFFF, 1, 1, 0x100, False, False),  # a null selector
    ],
)
def test_segments(type: int, limit: int, db: int, unusable: int, offset: int, write: bool, allowed: bool) -> None:
    # cmpxchg8b es:[esi], or popcnt eax, dword es:[esi]
    guest = Guest("260fc70e" if write else "26f30fb806", "protected", rsi=offset)
    guest.state.es = segments.flat_data()
    for name, value in {"type": type, "limit": limit, "db": db, "unusable": unusable, "base": DATA}.items():
        setattr(guest.state.es, name, value)
    if allowed:
        assert guest.complete() and guest.vcpu.raised is None
    else:
        assert guest.meets(GP, 0)
        guest.state.ss = guest.state.es
        guest.state.rflags = 2
        stack = Guest(guest.code.replace(b"\x26", b"\x36").hex(), "protected", rsi=offset)
        stack.state.ss = guest.state.es
        if not unusable and type in (3, 7):
            assert stack.meets(SS, 0)


def test_16_bit_addresses_wrap() -> None:
    guest = Guest("f30fb840ff", "real", rbx=0x1_0001, rsi=0xFFFF_FFFF)  # popcnt [bx + si - 1], ax
    guest.memory.write(0xFFFF, b"\xff\x01")
    guest.state.rip = 0x1000
    assert guest.complete()
    # Two bytes at 0xffff reach beyond the limit of 64 KiB; real mode has no error codes.
    assert guest.vcpu.raised == (GP, None)
    guest = Guest("67f30fb80e", "protected", rsi=0xDEAD0000, rbp=0x5_0000)  # [0x????], no base
    guest.code = bytes.fromhex("67f30fb802")  # popcnt eax, [bp + si]
    guest.exit.insn_bytes = guest.code
    guest.state.rsi, guest.state.rbp = 0xFFF0_0123, 0x10
    guest.memory.write(0x133, b"\xff")
    assert guest.complete() and guest.vcpu.raised is None
    assert guest.state.rax & 0xFF == 8


# --- What is left alone ----------------------------------------------------------------------------------------------


def left_alone(guest: Guest) -> bool:
    before = guest.registers()
    assert not guest.complete()
    assert guest.exit.completed == ""
    assert guest.registers() == before and guest.state.rip == CODE
    return True


def test_what_is_not_for_pyvmm() -> None:
    assert left_alone(Guest("0f01d0"))  # xgetbv
    assert left_alone(Guest("660fefc0"))  # pxor
    assert left_alone(Guest(POPCNT, rsi=0xD0000000))  # a device's registers
    assert left_alone(Guest(CMPXCHG, rsi=0xFEE00300))
    assert left_alone(Guest("f00fc70e", rsi=DATA + 61))  # two cache lines at once
    assert left_alone(Guest("f00fc70e", rsi=DATA + 4096 - 4))  # two pages at once
    assert left_alone(Guest("cc", "protected", rflags=2 | bits.RFLAGS_VM))
    guest = Guest(POPCNT, rsi=DATA)
    guest.exit = InternalError(KVM_INTERNAL_ERROR_DELIVERY_EV, (), guest.exit.insn_bytes)
    assert left_alone(guest)
    for cr4 in (1 << 22, 1 << 24, 1 << 28):  # protection keys, linear address masking
        assert left_alone(Guest(POPCNT, rsi=DATA, cr4=bits.CR4_PAE | cr4))
    assert left_alone(Guest(POPCNT, rsi=DATA, cr3=TABLES | 1 << 62))
    guest = Guest(POPCNT, rsi=DATA + 4, rflags=2 | AC)
    guest.memory.write_u64(TABLES, guest.memory.read_u64(TABLES) | USER)
    user(guest)
    guest.state.cr0 |= bits.CR0_AM
    assert left_alone(guest)  # an alignment check
    guest = Guest(POPCNT, rsi=DATA)
    guest.memory.write_u64(TABLES, 0x8000_0000 | PRESENT)  # tables outside RAM
    guest.state.rip = CODE
    assert left_alone(guest)


def test_an_exception_under_delivery_is_not_lost() -> None:
    guest = Guest(POPCNT, rsi=DATA)
    guest.vcpu.exception = (PF, 2)
    assert left_alone(guest)
    guest.vcpu.exception = (UD, None)
    assert left_alone(guest)


def test_the_invalid_opcode_of_a_kvm_that_says_no_bytes_is_taken_back() -> None:
    guest = Guest("f3480fb8c3")
    guest.exit = InternalError(KVM_INTERNAL_ERROR_EMULATION)
    guest.vcpu.exception = (UD, None)
    assert guest.complete()
    assert guest.vcpu.raised is None
    guest = Guest("f3480fb8c3")
    guest.exit = InternalError(KVM_INTERNAL_ERROR_EMULATION)
    guest.vcpu.exception = (PF, 0)
    assert not guest.complete()


def test_bytes_that_kvm_did_not_fetch_are_read_from_memory() -> None:
    guest = Guest("f3480fb8863f000000", rsi=DATA)
    guest.exit.insn_bytes = guest.code[:4]
    assert guest.complete()
    assert guest.state.rip == CODE + 9
    guest = Guest("f30fb806", "protected", rsi=DATA)
    guest.state.cs.base = 0x1000
    guest.state.rip = (CODE - 0x1000) & 0xFFFF_FFFF
    guest.exit.insn_bytes = b"\xf3"
    assert guest.complete()
    assert guest.state.rip == CODE - 0x1000 + 4
