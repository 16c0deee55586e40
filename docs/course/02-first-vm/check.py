"""Judges the exercises of lesson 2."""

import mmap
import threading

from pyvmm.kvm.exits import Hlt, InternalError, Pio
from pyvmm.testing.scripted import ScriptedVcpu


def check_linear(work):
    cases = [(0, 0x7C00, 0x7C00), (0x7C0, 0, 0x7C00), (0xF000, 0xFFF0, 0xFFFF0), (0xFFFF, 0x10, 0), (1, 0x10001, 0x11)]
    for segment, offset, expected in cases:
        got = work.exercise.linear(segment, offset)
        if got != expected:
            shown = hex(got) if isinstance(got, int) else repr(got)
            return f"linear({segment:#x}, {offset:#x}) is {shown}, expected {expected:#x}"
    return ""


def check_serve(work):
    def out(port, data):
        return Pio(port, len(data), 1, True, data)

    script = [
        Pio(0x3FD, 1, 1, False),
        out(0x3F8, b"o"),
        out(0x80, b"x"),
        Pio(0x60, 2, 1, False),
        out(0x3F8, b"k"),
        Hlt(),
    ]
    vcpu = ScriptedVcpu(script)
    output = work.exercise.serve(vcpu)
    if output != b"ok":
        return f"serve() returned {output!r} from a guest that writes 'o' and 'k' to port 0x3f8, expected b'ok'"
    if vcpu.answers[:1] != [b"\x60"]:
        return f"a read of port 0x3fd was answered with {vcpu.answers[:1]}, expected the byte 0x60"
    if vcpu.answers[1:] != [b"\xff\xff"]:
        return f"a read of two bytes from port 0x60 was answered with {vcpu.answers[1:]}, expected two bytes 0xff"
    try:
        work.exercise.serve(ScriptedVcpu([InternalError(1), Hlt()]))
    except RuntimeError:
        return ""
    return "serve() went on after an exit that it does not know, expected RuntimeError"


def check_digits(work):
    from pyvmm.kvm import Kvm

    code = work.exercise.DIGITS
    if not isinstance(code, bytes) or not 0 < len(code) <= 512:
        return "DIGITS is empty (expected up to 512 bytes of machine code)"
    memory = mmap.mmap(-1, 1 << 20)
    memory[0x7C00 : 0x7C00 + len(code)] = code
    output = b""
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.set_user_memory_region(0, 0, memoryview(memory))
        vcpu = vm.create_vcpu(0)
        sregs, regs = vcpu.get_sregs(), vcpu.get_regs()
        sregs.cs.selector = sregs.cs.base = 0
        vcpu.set_sregs(sregs)
        regs.rip, regs.rflags = 0x7C00, 2
        vcpu.set_regs(regs)
        limit = threading.Timer(10, vcpu.kick)
        limit.start()
        try:
            while isinstance(exit := vcpu.run(), Pio) and len(output) < 100:
                output += exit.data if exit.port == 0x3F8 else b""
        finally:
            limit.cancel()
    if not isinstance(exit, Hlt):
        return f"the guest wrote {output[:20]!r} and then did not halt: {exit.describe()}"
    return "" if output == b"0123456789" else f"the guest wrote {output!r}, expected b'0123456789'"
