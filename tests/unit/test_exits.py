"""The typed exits: every reason of the kernel's header has a class, and every class says what happened."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyvmm.kvm import exits, seldom
from pyvmm.kvm.exits import EXITS, OF_OTHER_ARCHITECTURES

HEADER = Path("/usr/include/linux/kvm.h")
# Numbers below an exit reason, not reasons themselves.
NOT_REASONS = ("KVM_EXIT_IO_", "KVM_EXIT_HYPERV_", "KVM_EXIT_XEN_", "KVM_EXIT_HYPERCALL_")


def header_reasons() -> dict[str, int]:
    if not HEADER.exists():
        pytest.skip(f"{HEADER} is missing")
    found = re.findall(r"^#define\s+(KVM_EXIT_\w+)\s+(\d+)", HEADER.read_text(), re.MULTILINE)
    return {name: int(value) for name, value in found if not name.startswith(NOT_REASONS)}


def test_every_reason_of_the_header_is_known():
    reasons = header_reasons()
    assert len(reasons) >= 25
    for name, number in reasons.items():
        if number in OF_OTHER_ARCHITECTURES:
            assert OF_OTHER_ARCHITECTURES[number] == name.removeprefix("KVM_EXIT_")
        else:
            assert getattr(exits, name) == number
            assert EXITS[number].name == name.removeprefix("KVM_EXIT_")


def test_reasons_are_ours_or_of_others_never_both():
    assert not EXITS.keys() & OF_OTHER_ARCHITECTURES.keys()
    constants = {value for name, value in vars(exits).items() if name.startswith("KVM_EXIT_")}
    assert EXITS.keys() <= constants


def test_every_class_is_listed_slotted_and_described():
    named = [*vars(exits).values(), *vars(seldom).values()]
    classes = [kind for kind in named if isinstance(kind, type) and issubclass(kind, exits.Exit)]
    assert set(classes) - {exits.Exit, exits.Access} == set(EXITS.values())
    for kind in classes:
        assert kind.__doc__
        assert all("__slots__" in vars(base) for base in kind.__mro__[:-1])


SAMPLES = [
    (exits.Pio(0x3F8, 1, 1, True, b"A"), "IO out port 0x3f8 size 1 <- 0x41"),
    (exits.Pio(0x3F8, 1, 3, True, b"abc"), "IO out port 0x3f8 size 1 x3 <- 61 62 63"),
    (exits.Pio(0x3F8, 1, 100, True, b"a" * 100), f"IO out port 0x3f8 size 1 x100 <- {'61 ' * 32}... (100 bytes)"),
    (exits.Pio(0x60, 2, 1, False), "IO in port 0x60 size 2 -> ?"),
    (exits.Pio(0x60, 2, 1, False, b"\x34\x12"), "IO in port 0x60 size 2 -> 0x1234"),
    (exits.Mmio(0xD0000000, 4, True, b"\1\0\0\0"), "MMIO write 0xd0000000 size 4 <- 0x00000001"),
    (exits.Mmio(0xD0000000, 8, False), "MMIO read 0xd0000000 size 8 -> ?"),
    (exits.Unknown(0, b"\x21" + bytes(255)), "UNKNOWN hardware reason 0x21"),
    (exits.Unknown(99, b"\1\2"), "exit reason 99, which pyvmm does not know: 01 02"),
    (exits.Unknown(35, b""), "exit reason 35, RISCV_SBI: "),
    (exits.ExceptionExit(13, 8), "EXCEPTION vector 13 error code 0x8"),
    (exits.Hypercall(12, (1, 2), True), "HYPERCALL 12 (0x1, 0x2)"),
    (exits.Debug(1, 0x1000, 0xFFFF4FF0, 0x400), "DEBUG exception 1 at 0x1000 dr6 0xffff4ff0 dr7 0x400"),
    (exits.Hlt(), "HLT"),
    (exits.IrqWindowOpen(), "IRQ_WINDOW_OPEN"),
    (exits.Shutdown(), "SHUTDOWN (triple fault)"),
    (exits.FailEntry(0x80000021, 3), "FAIL_ENTRY hardware reason 0x80000021 (VM-entry failure, basic reason 33)"),
    (exits.FailEntry(7, 3), "FAIL_ENTRY hardware reason 0x7"),
    (exits.Interrupted(), "INTR (kicked or signalled)"),
    (exits.SetTpr(), "SET_TPR"),
    (exits.TprAccess(0x1234, True), "TPR_ACCESS write at rip 0x1234"),
    (exits.Nmi(), "NMI"),
    (exits.InternalError(1, (), b"\xcc"), "INTERNAL_ERROR suberror 1: KVM could not emulate an instruction: cc"),
    (exits.InternalError(7, (1, 2)), "INTERNAL_ERROR suberror 7: of unknown kind (0x1, 0x2)"),
    (
        exits.InternalError(4),
        "INTERNAL_ERROR suberror 4: an exit of the processor that KVM does not know",
    ),
    (exits.SystemEvent(2), "SYSTEM_EVENT reset"),
    (exits.SystemEvent(3, (5, 6)), "SYSTEM_EVENT crash 0x5 0x6"),
    (exits.SystemEvent(77), "SYSTEM_EVENT 77"),
    (exits.IoapicEoi(0x30), "IOAPIC_EOI vector 0x30"),
    (exits.Hyperv(2, (1, 2, 3)), "HYPERV type 2 (0x1, 0x2, 0x3)"),
    (exits.Rdmsr(0x10, 1), "X86_RDMSR 0x10 -> ?"),
    (exits.Wrmsr(0x10, 1, 0xABC), "X86_WRMSR 0x10 <- 0xabc"),
    (exits.DirtyRingFull(), "DIRTY_RING_FULL"),
    (exits.ApResetHold(), "AP_RESET_HOLD"),
    (exits.BusLock(), "X86_BUS_LOCK"),
    (exits.Xen(1, True, 3, 17, (1, 2)), "XEN hypercall 17 from ring 3 (0x1, 0x2)"),
    (exits.Notify(1), "NOTIFY flags 0x1, the vCPU's state is lost"),
    (exits.Notify(0), "NOTIFY flags 0x0"),
    (exits.MemoryFault(8, 0x1000, 0x2000), "MEMORY_FAULT gpa 0x1000 size 0x2000 flags 0x8"),
]


@pytest.mark.parametrize(("exit", "text"), SAMPLES, ids=[type(exit).__name__ for exit, _ in SAMPLES])
def test_describe(exit, text):
    assert exit.describe() == text
    assert repr(exit) == f"<{type(exit).__name__}: {text}>"
    assert "\n" not in text


def test_every_class_has_a_sample():
    assert {type(exit) for exit, _ in SAMPLES} == set(EXITS.values())
