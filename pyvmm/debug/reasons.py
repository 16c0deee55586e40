"""The likeliest reasons why a guest ended the way it did, from an honest list of heuristics.

Imports the rest of debug, and the exits of kvm. Each heuristic looks at one vCPU and says one sentence or nothing;
what it says is likely, not certain, and several may hold at once. The most telling ones come first.
"""

from __future__ import annotations

from itertools import pairwise

from pyvmm import layout
from pyvmm.cpubits import CR0_PE, CR4_SMEP
from pyvmm.debug.entry import invalid_guest_state
from pyvmm.debug.evidence import Evidence, Reason, show
from pyvmm.debug.faults import stack, triple_fault
from pyvmm.debug.stalls import stall
from pyvmm.kvm.constants import KVM_MP_STATE_HALTED
from pyvmm.kvm.emulate import refusal
from pyvmm.kvm.exits import (
    KVM_INTERNAL_ERROR_DELIVERY_EV,
    KVM_INTERNAL_ERROR_EMULATION,
    VMX_ENTRY_FAILURE,
    FailEntry,
    InternalError,
    Shutdown,
    Unknown,
)

VMX_FAILURES = {33: "invalid guest state", 34: "loading MSRs failed", 41: "a machine check"}
"""Basic exit reasons of failed VM entries: SDM volume 3D, appendix C."""
SVM_INVALID = 0xFFFF_FFFF
"""The low half of VMEXIT_INVALID, which is -1: AMD APM volume 2, appendix C."""


def likely(evidence: Evidence, stalled: bool) -> list[Reason]:
    """Why this vCPU is where it is. `stalled` says that the run ended by a time limit or as stuck."""
    last = evidence.last_exit
    if stalled and evidence.state.mp_state == KVM_MP_STATE_HALTED:
        return stall(evidence)  # what lies behind the `hlt` does not matter
    if stalled:
        places = code(evidence)
        if evidence.state.reg("rsp"):  # a processor that uses no stack need not have one
            places += stack(evidence)
        return [*places, *stall(evidence)]
    if isinstance(last, Shutdown):
        return [*wrong_mode(evidence), *code(evidence), *triple_fault(evidence)]
    if isinstance(last, InternalError) and not last.completed:
        return [*wrong_mode(evidence), *code(evidence), *internal_error(evidence, last)]
    if isinstance(last, FailEntry):
        return failed_entry(evidence, last)
    if isinstance(last, Unknown):
        return [Reason("this host's KVM gives an exit that pyvmm does not know: probably it is newer than pyvmm")]
    return []


def code(evidence: Evidence) -> list[Reason]:
    """What is wrong with the place that RIP points at."""
    state, walk = evidence.state, evidence.fetch
    rip = state.linear_rip
    if walk.gpa is None:
        if rip == 0:
            text = "the guest jumped to address 0, which is not mapped: a call through a null pointer, or a return "
            return [Reason(text + "into an overwritten stack", show(walk))]
        return [Reason(f"RIP {rip:#x} is not mapped: {walk.problem}", show(walk))]
    if not evidence.in_ram(walk.gpa):
        where = f"RIP {rip:#x}" + (f" (gpa {walk.gpa:#x})" if walk.gpa != rip else "")
        text = f"{where} is outside RAM, which is {evidence.ram()}: the guest jumped to where no code can be"
        return [Reason(text, show(walk) if walk.entries else ())]
    if rip == 0:
        return [Reason("the guest jumped to address 0: a call through a null pointer, or nothing set the target")]
    if state.mode != "real" and rip < 4096:
        text = f"RIP {rip:#x} is in the first page of memory: unless the program is there, it jumped to near 0"
        return [Reason(text)]
    if not walk.executable:
        return [Reason(f"the page at RIP {rip:#x} may not be executed (XD)", show(walk))]
    if walk.entries and state.cpl == 3 and not walk.user:
        return [Reason(f"ring 3 fetched from a page of the kernel at {rip:#x} (U clear)", show(walk))]
    if walk.entries and state.cpl < 3 and walk.user and state.reg("cr4") & CR4_SMEP:
        return [Reason(f"the kernel fetched from a page of ring 3 at {rip:#x}, which CR4.SMEP forbids", show(walk))]
    if evidence.code.startswith(b"\x7fELF"):
        return [Reason("RIP is at the header of an ELF file: it was loaded as if it were a flat binary")]
    if len(evidence.code) == 16 and not any(evidence.code):
        text = f"RIP {rip:#x} is in memory full of zeroes: the guest ran past its code, or jumped to where nothing"
        return [Reason(text + " was loaded")]
    return []


BOOT_SECTOR = layout.FLAT_REAL_LOAD
BIOS = 0xF0000
"""The last 64 KiB below 1 MiB, with the reset vector at ffff:0000."""
BOOT_SIGNATURE = b"\x55\xaa"
_REX_W_OPCODES = frozenset(b"\x89\x8b\x8d\x83\x81\xc7\x01\x29\x31\x39\x85\xb8\xb9\xba\xbb\xbe\xbf\xc1\xff")
"""What most often follows a REX.W prefix in compiled 64-bit code."""


def wrong_mode(evidence: Evidence) -> list[Reason]:
    """Signs that the code was written for another processor mode than the one it runs in."""
    state = evidence.state
    rip = state.linear_rip
    if not state.reg("cr0") & CR0_PE and rip < layout.PVH_START_INFO:
        text = f"real-mode code is at {rip:#x}, below all programs: probably it called a BIOS (`int n`), and"
        return [Reason(text + " this machine has none")]
    if not state.reg("cr0") & CR0_PE and rip >= BIOS and not any(evidence.code):
        text = f"real-mode code is at {rip:#x}, where a PC has its BIOS: probably a reset or a call to it, and"
        return [Reason(text + " this machine has none")]
    sector = evidence.read(BOOT_SECTOR + 510, 2)
    if state.code_bits != 16 and BOOT_SECTOR <= rip < BOOT_SECTOR + 512 and sector == BOOT_SIGNATURE:
        text = f"a boot sector is 16-bit code, but runs as {state.code_bits}-bit code: try --flat-mode real"
        return [Reason(text)]
    if state.code_bits != 64:
        around = evidence.read(max(rip - 32, 0), 96)
        signs = sum(rex in (0x48, 0x4C) and opcode in _REX_W_OPCODES for rex, opcode in pairwise(around))
        if signs >= 3:
            text = f"the code around RIP looks like 64-bit code, but runs as {state.code_bits}-bit code:"
            return [Reason(f"{text} try --flat-mode long, or build it for this mode")]
    return []


def internal_error(evidence: Evidence, exit: InternalError) -> list[Reason]:
    """Why KVM itself gave up."""
    state = evidence.state
    if exit.suberror == KVM_INTERNAL_ERROR_DELIVERY_EV:
        reasons = [
            Reason(f"the {name} at {table.base:#x} is not in RAM, so an event cannot be delivered", show(walk))
            for name, table in (("IDT", state.idt), ("GDT", state.gdt))
            if (walk := evidence.walk(table.base)).gpa is None or not evidence.in_ram(walk.gpa)
        ]
        return reasons or [Reason("KVM met an access that it cannot emulate while it delivered an interrupt")]
    if exit.suberror != KVM_INTERNAL_ERROR_EMULATION:
        return []
    walk = evidence.fetch
    if walk.gpa is None or not evidence.in_ram(walk.gpa):
        return []  # `code` has said it: KVM cannot run code from where there is no RAM
    code = exit.insn_bytes or evidence.code
    known = refusal(code, state.code_bits)
    ring = "real mode" if state.mode == "real" else f"ring {state.cpl}"
    if known is not None:
        text = f"KVM had to emulate {known.name}{evidence.instruction(code)} in {ring} and cannot: {known.avoid}"
    else:
        text = f"KVM had to emulate the instruction at RIP{evidence.instruction(code)} in {ring} and does not know it"
    return [Reason(text)]


def failed_entry(evidence: Evidence, exit: FailEntry) -> list[Reason]:
    """Which rule of VM entry the guest's state breaks."""
    number = exit.hardware_reason
    meaning = "a reason that pyvmm does not know"
    if number & 0xFFFF_FFFF == SVM_INVALID:
        meaning = "VMEXIT_INVALID, an illegal guest state"
    elif number & VMX_ENTRY_FAILURE:
        meaning = VMX_FAILURES.get(number & 0xFFFF, meaning)
    broken = invalid_guest_state(evidence.state)
    if broken:
        return [Reason(f"the processor refused the guest's state ({meaning}): {text}") for text in broken]
    return [Reason(f"the processor refused to enter the guest: {meaning}; no rule that pyvmm checks is broken")]
