"""What this host's KVM costs, measured with guests of a few bytes: the numbers of `pyvmm doctor`.

May import kvm, boot, memory and layout. Each guest has a time limit, after which its vCPU is kicked: a guest can spin
inside KVM for ever. Times are wall time as Python sees it, some two microseconds of each exit being Python's own.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from struct import pack
from threading import Timer

from pyvmm import layout
from pyvmm.boot import x86
from pyvmm.boot.segments import CODE_SELECTOR, DATA_SELECTOR, FLAT_LIMIT, TYPE_CODE, TYPE_DATA, Segment
from pyvmm.errors import PyvmmError
from pyvmm.kvm import Kvm
from pyvmm.kvm.cpuid import with_topology
from pyvmm.kvm.exits import Pio
from pyvmm.kvm.setup import apply_state
from pyvmm.memory import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyvmm.kvm.vcpu import VcpuFd

TIME_LIMIT = 5.0
"""Seconds for one guest. The slowest known host needs 0.1."""
ROUNDS = 5
EXITS = 200
"""Exits in a round."""
LOOPS = 20_000
"""Turns of two instructions in a round: 10 ms where KVM emulates each, 10 µs where the processor runs them."""
EMULATED = 50
"""Nanoseconds for an instruction as simple as those measured, above which it is no processor that runs it."""

PORT = 0x80  # diagnostic codes of a PC's firmware; nobody answers here, and no kernel helper is attached

# Where things are in the guest's 2 MiB; nothing but this file knows these addresses.
RAM = 2 << 20
PML4, PDPT, DIRECTORY, CODE, TSS, STACK = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x9000
TSS_IO_MAP = 0x66  # of a 64-bit TSS: 16-bit offset of its I/O bitmap (SDM volume 3A, 8.7)
TSS_BITMAP = 0x68
TSS_LIMIT = TSS_BITMAP + 65536 // 8 - 1
PAGE_USER = 1 << 2  # SDM volume 3A, 4.5: ring 3 may use the page

# 64-bit code; the comments are its assembly.
EXIT_LOOP = bytes.fromhex(
    "ee"  # 1: out dx, al
    "eb fd"  # jmp 1b
)
COUNT_LOOP = bytes.fromhex(
    "89 d9"  # 1: mov ecx, ebx
    "ff c9"  # 2: dec ecx
    "75 fc"  #    jnz 2b
    "ee"  #       out dx, al
    "eb f7"  #    jmp 1b
)


class Cost:
    """What one thing costs, in nanoseconds: the median of the rounds, the least and the most."""

    __slots__ = ("least", "median", "most")

    def __init__(self, rounds: list[float]) -> None:
        ordered = sorted(rounds)
        self.least, self.median, self.most = ordered[0], ordered[len(ordered) // 2], ordered[-1]


class Costs:
    """All that is measured: one exit from ring 0 and from ring 3, and one instruction in ring 0."""

    __slots__ = ("exit_ring0", "exit_ring3", "instruction_ring0")

    def __init__(self, exit_ring0: Cost, exit_ring3: Cost, instruction_ring0: Cost) -> None:
        self.exit_ring0 = exit_ring0
        self.exit_ring3 = exit_ring3
        self.instruction_ring0 = instruction_ring0

    @property
    def ring0_emulated(self) -> bool:
        """Whether ring 0 is so slow that KVM's emulator must be running it."""
        return self.instruction_ring0.least > EMULATED  # the round that a busy host disturbed least


def measure(progress: Callable[[str], None] = lambda _: None) -> Costs:
    """Run the probe guests, a few tenths of a second in all. `progress` is told what comes next.

    Raises KvmUnavailableError, KvmError, and PyvmmError for a guest that does something else than it should.
    """
    progress("measuring an exit from ring 0")
    exit_ring0 = _measure(EXIT_LOOP, 0, EXITS, 0)
    progress("measuring an exit from ring 3")
    exit_ring3 = _measure(EXIT_LOOP, 3, EXITS, 0)
    progress("measuring an instruction in ring 0")
    turn = _measure(COUNT_LOOP, 0, 1, LOOPS)
    rounds = [max(round - exit_ring0.median, 0) / (2 * LOOPS) for round in (turn.least, turn.median, turn.most)]
    return Costs(exit_ring0, exit_ring3, Cost(rounds))


def _measure(code: bytes, ring: int, exits: int, count: int) -> Cost:
    """Nanoseconds from exit to exit of `code` in `ring`, with `count` in EBX."""
    with probe_guest(code, ring, count) as vcpu:
        return _rounds(vcpu, exits)


@contextmanager
def probe_guest(code: bytes, ring: int, rbx: int = 0) -> Iterator[VcpuFd]:
    """The vCPU of a guest that is about to run `code`, at CODE in `ring`; it is kicked when its time is over.

    Raises KvmUnavailableError, KvmError.
    """
    memory = GuestMemory.allocate([(0, RAM)])
    try:
        _fill(memory, code)
        with Kvm() as kvm, kvm.create_vm() as vm:
            vm.set_tss_addr(layout.KVM_TSS)
            vm.set_user_memory_region(0, 0, memory.regions[0].view)
            vcpu = vm.create_vcpu(0)
            vcpu.set_cpuid2(with_topology(kvm.supported_cpuid(), 0, 1))
            apply_state(vcpu, _state(ring, rbx))
            limit = Timer(TIME_LIMIT, vcpu.kick)
            limit.start()
            try:
                yield vcpu
            finally:
                limit.cancel()
                limit.join()
    finally:
        memory.close()


def _rounds(vcpu: VcpuFd, exits: int) -> Cost:
    clock = time.perf_counter_ns
    _next(vcpu)  # the first entry maps memory and is no measure
    rounds = []
    for _ in range(ROUNDS):
        start = clock()
        for _ in range(exits):
            _next(vcpu)
        rounds.append((clock() - start) / exits)
    return Cost(rounds)


def _next(vcpu: VcpuFd) -> None:
    exit = vcpu.run()
    if exit.__class__ is not Pio or exit.port != PORT:
        if vcpu.immediate_exit:
            raise PyvmmError(f"a probe guest did not come back within {TIME_LIMIT:g} s")
        raise PyvmmError(f"a probe guest ended in {exit.describe()}")


def _fill(memory: GuestMemory, code: bytes) -> None:
    link = x86.PAGE_PRESENT | x86.PAGE_WRITABLE | PAGE_USER
    memory.write_u64(PML4, PDPT | link)
    memory.write_u64(PDPT, DIRECTORY | link)
    memory.write_u64(DIRECTORY, 0 | link | x86.PAGE_LARGE)
    memory.write(CODE, code)
    memory.write(TSS + TSS_IO_MAP, pack("<H", TSS_BITMAP))  # the bitmap stays zero: every port is allowed


def _state(ring: int, rbx: int) -> x86.CpuState:
    state = x86.long_state(STACK, 0, PML4)
    state.cs = Segment(CODE_SELECTOR | ring, 0, FLAT_LIMIT, TYPE_CODE, dpl=ring, l=1, g=1)
    state.ds = state.es = state.fs = state.gs = state.ss = Segment(
        DATA_SELECTOR | ring, 0, FLAT_LIMIT, TYPE_DATA, dpl=ring, db=1, g=1
    )
    state.tr.base, state.tr.limit = TSS, TSS_LIMIT
    state.rip, state.rdx, state.rbx = CODE, PORT, rbx
    return state
