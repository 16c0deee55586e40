"""Judges the exercises of lesson 11; needs no KVM."""

from pyvmm.kvm.entries import CpuidEntry
from pyvmm.kvm.exits import Hlt, Rdmsr, Wrmsr
from pyvmm.testing.scripted import ScriptedVcpu

LIMIT, COUNTER, OTHER = 0x4B564DFE, 0x4B564DFF, 0x4B564DFD


def supported():
    """Two leaves of a made-up processor; its APIC ID is that of the host's CPU that answered."""
    return [
        CpuidEntry(0, 0, 0, 0xD, 0x756E6547, 0x6C65746E, 0x49656E69),
        CpuidEntry(1, 0, 0, 0x806F8, 0x07400800, 0x7FFAFBFF, 0x0F8BFBFF),
        CpuidEntry(7, 0, 1, 0, 0xF1BF07AB, 0x0000000B, 0xC0000010),
    ]


def check_cpuid_of(work):
    given = supported()
    found = work.exercise.cpuid_of(given, 3, 4)
    if found is None:
        return "cpuid_of() returns nothing yet"
    if given != supported():
        return "what KVM supports was changed itself: the next CPU starts from there, so work on copies"
    if [(one.function, one.index, one.flags) for one in found] != [
        (one.function, one.index, one.flags) for one in given
    ]:
        return "there are not the same leaves, in the same order, with the same index and flags"
    if (found[0], found[2]) != (given[0], given[2]):
        return "another leaf than 1 was changed"
    one = found[1]
    if not one.ecx >> 31:
        return "bit 31 of ECX in leaf 1 is clear: the guest does not look for kvmclock then"
    if one.ecx >> 3 & 1:
        return "bit 3 of ECX in leaf 1 is set: the guest would use MONITOR"
    if one.ecx & 0x7FFFFFF7 != given[1].ecx & 0x7FFFFFF7 or (one.eax, one.edx) != (given[1].eax, given[1].edx):
        return "a bit of leaf 1 was changed that nothing was said about"
    if one.ebx >> 24 != 3:
        return f"EBX bits 31:24 of CPU 3 are {one.ebx >> 24}: every CPU has an APIC ID of its own"
    if one.ebx >> 16 & 0xFF != 4:
        return f"EBX bits 23:16 are {one.ebx >> 16 & 0xFF}, with 4 CPUs"
    if one.ebx & 0xFFFF != 0x0800:
        return "the lower half of EBX (CLFLUSH line size, brand) was changed"
    return ""


class Vcpu(ScriptedVcpu):
    """Notes what becomes of each exit."""

    def __init__(self, script):
        super().__init__(script)
        self.outcomes = []
        self.halted = False

    def run(self):
        if self.halted:
            raise AssertionError("run() is called again after the Hlt")
        exit = super().run()
        self.halted = isinstance(exit, Hlt)
        self.outcomes.append("nothing")
        return exit

    def answer(self, exit, data):
        if not isinstance(exit, Rdmsr):
            raise AssertionError(f"answer() to {exit.describe()}, which asks for nothing")
        if len(data) != 8:
            raise AssertionError(f"the answer to {exit.describe()} has {len(data)} bytes, not 8")
        self.outcomes[-1] = int.from_bytes(data, "little")

    def refuse(self, exit):
        self.outcomes[-1] = "refused"


def check_serve(work):
    script = [
        (Rdmsr(LIMIT, 2), 0, "LIMIT is 0 at first"),
        (Wrmsr(LIMIT, 2, 0xDEADBEEF), "nothing", "a write to LIMIT that is in order succeeds without an answer"),
        (Rdmsr(LIMIT, 2), 0xDEADBEEF, "LIMIT keeps what was written"),
        (Wrmsr(LIMIT, 2, 1 << 32), "refused", "bits 63:32 of LIMIT must be 0"),
        (Rdmsr(LIMIT, 2), 0xDEADBEEF, "a write that was refused changes nothing"),
        (Rdmsr(COUNTER, 2), 0, "COUNTER has not been read before"),
        (Rdmsr(COUNTER, 2), 1, "COUNTER has been read once"),
        (Wrmsr(COUNTER, 2, 0), "refused", "COUNTER is read-only"),
        (Rdmsr(OTHER, 2), "refused", "there is no MSR 0x4b564dfd"),
        (Wrmsr(OTHER, 2, 7), "refused", "there is no MSR 0x4b564dfd"),
        (Rdmsr(COUNTER, 2), 2, "COUNTER has been read twice"),
    ]
    vcpu = Vcpu([exit for exit, _, _ in script] + [Hlt()])
    try:
        limit = work.exercise.serve(vcpu)
    except AssertionError as error:
        return str(error)
    if not vcpu.outcomes:
        return "serve() never calls vcpu.run()"
    for (exit, expected, why), found in zip(script, vcpu.outcomes, strict=False):
        if found != expected:
            return f"{exit.describe()}: {why}, so it should be {expected}, not {found}"
    if not vcpu.halted:
        return f"serve() has returned before the Hlt, after {len(vcpu.outcomes)} exits"
    return "" if limit == 0xDEADBEEF else f"serve() returns {limit!r}, not what LIMIT had at the end, 0xdeadbeef"
