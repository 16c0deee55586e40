"""Completes the few instructions that a kernel's boot meets and KVM's emulator may refuse; see docs/emulation.md.

Imports operand, decodeinsn, cpubits and cpufeatures. `complete` is handed an emulation failure (KVM API, 5,
KVM_EXIT_INTERNAL_ERROR) and does what the processor would have done: the instruction's effect on registers, flags and
memory, or the exception that it raises. The list is `_EFFECTS`, and it is meant to stay short: what is not in it, and
every case in which pyvmm would have to guess, ends in the crash report.

Each effect follows its page of the Intel SDM volume 2; what ends every instruction (RIP, RF, TF, interrupt shadow)
volume 3A, 6.8.3, and 3B, 18.3.1. Breakpoints on data (DR0 to DR3) are not looked at.
"""

from __future__ import annotations

from pyvmm import cpubits
from pyvmm.kvm.constants import KVM_VCPUEVENT_VALID_SHADOW
from pyvmm.kvm.cpufeatures import feature_bits
from pyvmm.kvm.decodeinsn import decode
from pyvmm.kvm.emulate import LONGEST
from pyvmm.kvm.exits import KVM_INTERNAL_ERROR_EMULATION, InternalError
from pyvmm.kvm.operand import GP, MF, MNEMONICS, NM, UD, Fault, LostRace, NotCompleted, Processor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm._native import _kvm
    from pyvmm.kvm.decodeinsn import Instruction
    from pyvmm.kvm.operand import Vcpu
    from pyvmm.memory import GuestMemory

DB, BP = 1, 3
IA32_TIME_STAMP_COUNTER, IA32_TSC_AUX = 0x10, 0xC000_0103
"""MSRs (SDM volume 4, table 2-2)."""
X87_EXCEPTIONS = 0x3F
"""The exception flags of the x87 status word, and their masks in the control word (SDM volume 1, 8.1.3 and 8.1.5)."""

_FEATURES = {
    "popcnt": "popcnt",
    "cmpxchg8b": "cx8",
    "cmpxchg16b": "cx16",
    "rdtscp": "rdtscp",
    "stac": "smap",
    "clac": "smap",
}
"""The CPUID feature without which an instruction is #UD."""


def complete(vcpu: Vcpu, exit: InternalError, memory: GuestMemory, features: dict[str, bool]) -> bool:
    """Complete the instruction that KVM could not emulate, so that the guest can run on.

    `features` keeps what CPUID says from one call for this vCPU to the next; it begins empty.
    True if that is done, and `exit.completed` names the instruction (with the exception, if it raised one); False, with
    nothing changed but perhaps flags in page tables, where it is not for pyvmm. Raises KvmError.
    """
    if exit.suberror != KVM_INTERNAL_ERROR_EMULATION:
        return False
    try:
        processor = Processor(vcpu, memory)
        # KVM hands over what it had fetched, which may end where a page does.
        instruction = decode(exit.insn_bytes, processor.bits) or decode(processor.code(LONGEST), processor.bits)
        if instruction is None:
            return False
        events = vcpu.get_vcpu_events()
        # A KVM without KVM_CAP_EXIT_ON_EMULATION_FAILURE says #UD to the guest as well as failing.
        exception = events.exception
        if (exception.injected or exception.pending) and (exit.insn_bytes or exception.nr != UD):
            return False
        exit.completed = instruction.name
        try:
            _check_present(processor, instruction, features)
            vector = _EFFECTS[instruction.name](processor, instruction)
        except Fault as fault:
            exit.completed += f" ({MNEMONICS[fault.vector]})"
            _raise(processor, events, fault)
            return True
        _retire(processor, events, instruction, vector)
    except LostRace:
        exit.completed += " (begun anew)"
    except NotCompleted:
        exit.completed = ""
        return False
    return True


def _check_present(processor: Processor, instruction: Instruction, features: dict[str, bool]) -> None:
    """Raise #UD for an instruction that this processor does not have, or not in this form."""
    if instruction.lock and not instruction.name.startswith("cmpxchg"):
        raise Fault(UD)  # LOCK is for instructions that store to memory (SDM volume 2A, LOCK)
    feature = _FEATURES.get(instruction.name)
    if feature is None:
        return
    if feature not in features:
        ((leaf, subleaf, register, bit),) = feature_bits()[feature]
        features[feature] = any(
            (entry.function, entry.index) == (leaf, subleaf) and getattr(entry, register) >> bit & 1
            for entry in processor.vcpu.get_cpuid2()
        )
    if not features[feature]:
        raise Fault(UD)


def _retire(processor: Processor, events: _kvm.kvm_vcpu_events, instruction: Instruction, trap: int) -> None:
    """End an instruction that took effect; `trap` is the exception that is its effect, or 0."""
    regs, vcpu = processor.regs, processor.vcpu
    mask = (1 << 64) - 1 if processor.bits == 64 else 0xFFFF_FFFF
    regs.rip = (regs.rip + instruction.length) & mask
    regs.rflags &= ~cpubits.RFLAGS_RF
    if not trap and regs.rflags & cpubits.RFLAGS_TF:
        trap = DB
        debug = vcpu.get_debugregs()
        debug.dr6 |= cpubits.DR6_BS
        vcpu.set_debugregs(debug)
    vcpu.set_regs(regs)
    _set_events(processor, events, trap, None)


def _raise(processor: Processor, events: _kvm.kvm_vcpu_events, fault: Fault) -> None:
    """Let the guest meet the exception at this instruction."""
    if fault.cr2 is not None:
        processor.sregs.cr2 = fault.cr2
        processor.vcpu.set_sregs(processor.sregs)
    # As for every fault, so that a breakpoint on this instruction does not hit again (SDM volume 3B, 18.3.1.1).
    processor.regs.rflags |= cpubits.RFLAGS_RF
    processor.vcpu.set_regs(processor.regs)
    _set_events(processor, events, fault.vector, fault.error_code)


def _set_events(processor: Processor, events: _kvm.kvm_vcpu_events, vector: int, error_code: int | None) -> None:
    """Deliver exception `vector` (0 for none), and end the shadow that STI and MOV SS cast over one instruction."""
    exception = events.exception
    if not (vector or events.interrupt.shadow or exception.injected or exception.pending):
        return
    exception.injected, exception.pending, exception.nr = bool(vector), 0, vector
    exception.has_error_code, exception.error_code = error_code is not None, error_code or 0
    events.interrupt.shadow = 0
    # What else there is, an NMI for example, may have come meanwhile and is left alone.
    events.flags = KVM_VCPUEVENT_VALID_SHADOW
    processor.vcpu.set_vcpu_events(events)


# --- Effects -----------------------------------------------------------------------------------------------------
# Each changes `processor.regs` and memory, and returns the vector of the exception that is its effect, or 0.


def _int3(processor: Processor, _: Instruction) -> int:
    """SDM volume 2A, INT n/INTO/INT3/INT1: a trap to vector 3."""
    if processor.cpl:
        raise NotCompleted("whether the gate may be used from here is for the processor to say")
    return BP


def _fwait(processor: Processor, _: Instruction) -> int:
    """SDM volume 2D, WAIT/FWAIT: raises what the x87 has pending."""
    cr0 = processor.sregs.cr0
    if cr0 & cpubits.CR0_MP and cr0 & cpubits.CR0_TS:
        raise Fault(NM)
    fpu = processor.vcpu.get_fpu()
    if fpu.fsw & ~fpu.fcw & X87_EXCEPTIONS:
        if not cr0 & cpubits.CR0_NE:
            raise NotCompleted("the error is told by IRQ 13")
        raise Fault(MF)
    return 0


def _stac_clac(processor: Processor, instruction: Instruction) -> int:
    """SDM volume 2A, CLAC; volume 2B, STAC."""
    if processor.cpl:
        raise Fault(UD)
    if instruction.name == "stac":
        processor.regs.rflags |= cpubits.RFLAGS_AC
    else:
        processor.regs.rflags &= ~cpubits.RFLAGS_AC
    return 0


def _popcnt(processor: Processor, instruction: Instruction) -> int:
    """SDM volume 2B, POPCNT: all status flags are cleared but ZF."""
    regs, size = processor.regs, instruction.size
    if instruction.memory is None:
        value = getattr(regs, instruction.source) & (1 << size * 8) - 1
    else:
        value = processor.read(processor.linear(instruction, instruction.memory, write=False), size)
    # A result of 32 bits clears the upper half, one of 16 bits leaves the rest alone (SDM volume 1, 3.4.1.1).
    kept = getattr(regs, instruction.register) & ~0xFFFF if size == 2 else 0
    setattr(regs, instruction.register, kept | value.bit_count())
    regs.rflags = regs.rflags & ~cpubits.RFLAGS_STATUS | (0 if value else cpubits.RFLAGS_ZF)
    return 0


def _cmpxchg(processor: Processor, instruction: Instruction) -> int:
    """SDM volume 2A, CMPXCHG8B/CMPXCHG16B: in one locked instruction of the host, with LOCK or without."""
    regs, size, operand = processor.regs, instruction.size, instruction.memory
    assert operand is not None  # the register form is none of this instruction
    half = size * 4
    low = (1 << half) - 1
    gva = processor.linear(instruction, operand, write=True)
    if size == 16 and gva % size:
        raise Fault(GP, 0)
    expected = (regs.rdx & low) << half | regs.rax & low
    desired = (regs.rcx & low) << half | regs.rbx & low
    equal, found = processor.compare_exchange(gva, size, expected, desired)
    if equal:
        regs.rflags |= cpubits.RFLAGS_ZF
    else:
        regs.rflags &= ~cpubits.RFLAGS_ZF
        regs.rax, regs.rdx = found & low, found >> half
    return 0


def _rdtscp(processor: Processor, _: Instruction) -> int:
    """SDM volume 2B, RDTSCP: the counter as KVM shows it to the guest, and IA32_TSC_AUX."""
    if processor.cpl and processor.sregs.cr4 & cpubits.CR4_TSD:
        raise Fault(GP, 0)
    values = processor.vcpu.get_msrs((IA32_TIME_STAMP_COUNTER, IA32_TSC_AUX))
    if len(values) < 2:
        raise NotCompleted("this KVM does not tell the guest's time stamp counter")
    counter, regs = values[IA32_TIME_STAMP_COUNTER], processor.regs
    regs.rax, regs.rdx = counter & 0xFFFF_FFFF, counter >> 32
    regs.rcx = values[IA32_TSC_AUX] & 0xFFFF_FFFF
    return 0


_EFFECTS: dict[str, Callable[[Processor, Instruction], int]] = {
    "int3": _int3,
    "fwait": _fwait,
    "stac": _stac_clac,
    "clac": _stac_clac,
    "popcnt": _popcnt,
    "cmpxchg8b": _cmpxchg,
    "cmpxchg16b": _cmpxchg,
    "rdtscp": _rdtscp,
}
COMPLETED = tuple(_EFFECTS)
"""Names of the instructions that are completed."""
