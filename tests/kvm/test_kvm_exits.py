"""Real exits of tiny real-mode guests: I/O in every width, strings, MMIO, faults, MSRs, debugging, kicks."""

from __future__ import annotations

import threading
import time

import pytest

from pyvmm.errors import KvmError
from pyvmm.kvm import constants as k
from pyvmm.kvm.exits import Debug, Exit, Hlt, InternalError, Interrupted, Mmio, Pio, Rdmsr, Shutdown, Wrmsr
from pyvmm.kvm.vm import MsrRange
from tests.support.tinyvm import CODE, LIMIT, RAM, tiny_vm

pytestmark = pytest.mark.needs("kvm")

SPIN = b"\xeb\xfe"  # jmp $
# mov ax, 0xffff; mov ds, ax: ds:0x10 is gpa 0x100000, the first byte behind RAM
BEYOND = b"\xb8\xff\xff\x8e\xd8"


def needs(vm, capability, name):
    if not vm.check_extension(capability):
        pytest.skip(f"this host's KVM lacks {name}")


@pytest.mark.parametrize(
    ("code", "size", "data"),
    [
        (b"\xb0\x41\xee", 1, b"A"),  # mov al, 'A'; out dx, al
        (b"\xb8\x34\x12\xef", 2, b"\x34\x12"),  # mov ax, 0x1234; out dx, ax
        (b"\x66\xb8\x78\x56\x34\x12\x66\xef", 4, b"\x78\x56\x34\x12"),  # mov eax, 0x12345678; out dx, eax
    ],
)
def test_port_writes(code, size, data):
    with tiny_vm(code + b"\xf4", rdx=0x3F8) as tiny:
        exit = tiny.run()
        assert isinstance(exit, Pio)
        assert (exit.port, exit.size, exit.count, exit.is_write, exit.data) == (0x3F8, size, 1, True, data)
        assert isinstance(tiny.run(), Hlt)


@pytest.mark.parametrize(
    ("code", "size"),
    [(b"\xec\xf4", 1), (b"\xed\xf4", 2), (b"\x66\xed\xf4", 4)],  # in al, dx; in ax, dx; in eax, dx; then hlt
)
def test_port_reads(code, size):
    with tiny_vm(code, rdx=0x60, rax=0xFFFFFFFF) as tiny:
        exit = tiny.run()
        assert isinstance(exit, Pio)
        assert (exit.port, exit.size, exit.is_write, exit.data) == (0x60, size, False, b"")
        tiny.vcpu.answer(exit, b"\x11\x22\x33\x44"[:size])
        assert isinstance(tiny.run(), Hlt)
        assert tiny.vcpu.get_regs().rax == int.from_bytes(b"\x11\x22\x33\x44"[:size] + b"\xff" * (4 - size), "little")


def test_string_output_brings_every_byte_whatever_the_grouping():
    text = b"The quick brown fox"
    # cld; rep outsb; hlt
    with tiny_vm(b"\xfc\xf3\x6e\xf4", rsi=0x2000, rcx=len(text), rdx=0xE9) as tiny:
        tiny.memory[0x2000 : 0x2000 + len(text)] = text
        seen = b""
        while isinstance(exit := tiny.run(), Pio):
            assert (exit.port, exit.size, len(exit.data)) == (0xE9, 1, exit.count)
            seen += exit.data
        assert isinstance(exit, Hlt)
        assert seen == text


def test_string_input_takes_every_byte_whatever_the_grouping():
    text = b"jumps over the lazy dog"
    # cld; rep insw; hlt
    with tiny_vm(b"\xfc\xf3\x6d\xf4", rdi=0x2000, rcx=len(text) // 2, rdx=0x1F0) as tiny:
        given = 0
        while isinstance(exit := tiny.run(), Pio):
            length = exit.size * exit.count
            assert (exit.port, exit.size) == (0x1F0, 2)
            tiny.vcpu.answer(exit, text[given : given + length])
            given += length
        assert isinstance(exit, Hlt)
        assert given == len(text) // 2 * 2
        assert tiny.memory[0x2000 : 0x2000 + given] == text[:given]


@pytest.mark.parametrize(
    ("store", "data"),
    [
        (b"\xc6\x06\x10\x00\x5a", b"\x5a"),  # mov byte [0x10], 0x5a
        (b"\xc7\x06\x10\x00\x34\x12", b"\x34\x12"),  # mov word [0x10], 0x1234
        (b"\x66\xc7\x06\x10\x00\x78\x56\x34\x12", b"\x78\x56\x34\x12"),  # mov dword [0x10], 0x12345678
    ],
)
def test_mmio_writes(store, data):
    with tiny_vm(BEYOND + store + b"\xf4") as tiny:
        exit = tiny.run()
        assert isinstance(exit, Mmio)
        assert (exit.gpa, exit.size, exit.is_write, exit.data) == (RAM, len(data), True, data)
        assert isinstance(tiny.run(), Hlt)


def test_mmio_reads():
    # mov eax, [0x10]; hlt
    with tiny_vm(BEYOND + b"\x66\xa1\x10\x00\xf4") as tiny:
        exit = tiny.run()
        assert isinstance(exit, Mmio)
        assert (exit.gpa, exit.size, exit.is_write) == (RAM, 4, False)
        tiny.vcpu.answer(exit, b"\xef\xbe\xad\xde")
        assert isinstance(tiny.run(), Hlt)
        assert tiny.vcpu.get_regs().rax == 0xDEADBEEF


def test_a_page_crossing_read_comes_in_parts_even_under_immediate_exit():
    # mov eax, [0x100e]: gpa 0x100ffe to 0x101001; hlt
    with tiny_vm(BEYOND + b"\x66\xa1\x0e\x10\xf4") as tiny:
        exit = tiny.run()
        tiny.vcpu.immediate_exit = True
        parts = []
        while isinstance(exit, Mmio):
            parts.append((exit.gpa, exit.size))
            tiny.vcpu.answer(exit, bytes(range(len(parts) * 16, len(parts) * 16 + exit.size)))
            exit = tiny.run()
        assert isinstance(exit, Interrupted)
        assert parts == [(0x100FFE, 2), (0x101000, 2)]
        regs = tiny.vcpu.get_regs()
        assert (regs.rax, regs.rip) == (0x21201110, CODE + len(BEYOND) + 4)


def test_the_state_is_whole_once_an_answered_read_is_finished():
    # in al, 0x60; hlt
    with tiny_vm(b"\xe4\x60\xf4") as tiny:
        tiny.vcpu.answer(tiny.run(), b"\x99")
        tiny.finish()
        regs = tiny.vcpu.get_regs()
        assert (regs.rax & 0xFF, regs.rip) == (0x99, CODE + 2)


def test_triple_fault():
    # ud2 in 32-bit protected mode with an interrupt table that is empty
    with tiny_vm(b"\x0f\x0b") as tiny:
        sregs = tiny.vcpu.get_sregs()
        sregs.cr0 |= 1
        sregs.idt.limit = 0
        for name in ("cs", "ds", "es", "ss"):
            segment = getattr(sregs, name)
            segment.limit, segment.db, segment.g, segment.s, segment.present = 0xFFFFFFFF, 1, 1, 1, 1
            segment.type, segment.selector = (0xB, 8) if name == "cs" else (3, 16)
        tiny.vcpu.set_sregs(sregs)
        assert isinstance(tiny.run(), Shutdown)


def test_an_instruction_that_kvm_cannot_emulate():
    # fld dword [0x10], from MMIO
    with tiny_vm(BEYOND + b"\xd9\x06\x10\x00\xf4") as tiny:
        if tiny.vm.check_extension(k.KVM_CAP_EXIT_ON_EMULATION_FAILURE):
            tiny.vm.enable_cap(k.KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1)
        exit = tiny.run()
        assert isinstance(exit, InternalError)
        assert exit.suberror == 1
        assert tiny.vcpu.get_regs().rip == CODE + len(BEYOND)
        if exit.insn_bytes:
            assert exit.insn_bytes[:4] == b"\xd9\x06\x10\x00"


def test_single_steps():
    # nop; nop; hlt
    with tiny_vm(b"\x90\x90\xf4") as tiny:
        needs(tiny.vm, k.KVM_CAP_SET_GUEST_DEBUG, "KVM_CAP_SET_GUEST_DEBUG")
        tiny.vcpu.guest_debug(k.KVM_GUESTDBG_ENABLE | k.KVM_GUESTDBG_SINGLESTEP)
        for step in (1, 2):
            exit = tiny.run()
            assert isinstance(exit, Debug)
            assert (exit.exception, exit.pc) == (1, CODE + step)
            assert exit.dr6 & 1 << 14
        tiny.vcpu.guest_debug(0)
        assert isinstance(tiny.run(), Hlt)


def test_a_hardware_breakpoint():
    # nop; nop; nop; hlt
    with tiny_vm(b"\x90\x90\x90\xf4") as tiny:
        needs(tiny.vm, k.KVM_CAP_SET_GUEST_DEBUG, "KVM_CAP_SET_GUEST_DEBUG")
        # DR7: G0 set, condition "execute"
        tiny.vcpu.guest_debug(k.KVM_GUESTDBG_ENABLE | k.KVM_GUESTDBG_USE_HW_BP, [CODE + 2, 0, 0, 0, 0, 0, 0, 2])
        exit = tiny.run()
        assert isinstance(exit, Debug)
        assert exit.pc == CODE + 2


@pytest.fixture
def msr_guest():
    """Reads MSR 0x10001 into edx:eax, writes it to MSR 0x10002, halts; both are filtered and exit."""
    # mov ecx, 0x10001; rdmsr; inc ecx; wrmsr; hlt
    code = b"\x66\xb9\x01\x00\x01\x00\x0f\x32\x66\x41\x0f\x30\xf4"
    with tiny_vm(code) as tiny:
        needs(tiny.vm, k.KVM_CAP_X86_MSR_FILTER, "KVM_CAP_X86_MSR_FILTER")
        reasons = k.KVM_MSR_EXIT_REASON_FILTER | k.KVM_MSR_EXIT_REASON_UNKNOWN | k.KVM_MSR_EXIT_REASON_INVAL
        tiny.vm.enable_cap(k.KVM_CAP_X86_USER_SPACE_MSR, reasons)
        tiny.vm.set_msr_filter([MsrRange(k.KVM_MSR_FILTER_READ | k.KVM_MSR_FILTER_WRITE, 0x10000, [0] * 9)])
        yield tiny


def test_msr_accesses_of_user_space(msr_guest):
    exit = msr_guest.run()
    assert isinstance(exit, Rdmsr)
    assert (exit.index, exit.why) == (0x10001, k.KVM_MSR_EXIT_REASON_FILTER)
    msr_guest.vcpu.answer(exit, (0x1122334455667788).to_bytes(8, "little"))
    exit = msr_guest.run()
    assert isinstance(exit, Wrmsr)
    assert (exit.index, exit.value) == (0x10002, 0x1122334455667788)
    assert isinstance(msr_guest.run(), Hlt)
    msr_guest.vm.set_msr_filter([])


def test_a_refused_msr_access_is_gp_in_the_guest(msr_guest):
    handler = b"\xf4"  # hlt, at 0x3000; #GP is vector 13 of the real-mode table
    msr_guest.memory[0x3000 : 0x3000 + len(handler)] = handler
    msr_guest.memory[13 * 4 : 13 * 4 + 4] = b"\x00\x30\x00\x00"
    exit = msr_guest.run()
    msr_guest.vcpu.refuse(exit)
    assert isinstance(msr_guest.run(), Hlt)
    assert msr_guest.vcpu.get_regs().rip == 0x3001


def test_too_many_msr_ranges():
    with tiny_vm() as tiny, pytest.raises(ValueError, match="at most 16 ranges"):
        tiny.vm.set_msr_filter([MsrRange(k.KVM_MSR_FILTER_READ, 0, [1])] * 17)


# --- Kicks -------------------------------------------------------------------------------------------------------


def test_a_kick_ends_a_spinning_guest_and_stays_until_it_is_cleared():
    with tiny_vm(SPIN) as tiny:
        timer = threading.Timer(0.05, tiny.vcpu.kick)
        timer.start()
        start = time.monotonic()
        assert isinstance(tiny.run(), Interrupted)
        assert time.monotonic() - start < LIMIT / 2
        timer.join()
        for _ in range(3):  # sticky
            assert isinstance(tiny.run(), Interrupted)
        assert tiny.vcpu.immediate_exit is True
        assert tiny.vcpu.get_regs().rip == CODE
        tiny.vcpu.immediate_exit = False
        tiny.memory[CODE : CODE + 2] = b"\xf4\xf4"
        assert isinstance(tiny.run(), Hlt)


def test_a_kick_before_the_first_run():
    with tiny_vm(SPIN) as tiny:
        tiny.vcpu.kick()
        assert isinstance(tiny.run(), Interrupted)


def test_a_vcpu_may_change_threads():
    with tiny_vm(SPIN) as tiny:
        for _ in range(10):  # one after the other, so that threads get the POSIX id of an earlier one
            seen: list[Exit] = []
            thread = threading.Thread(target=lambda seen=seen: seen.append(tiny.vcpu.run()))
            thread.start()
            time.sleep(0.02)
            tiny.vcpu.kick()
            thread.join(LIMIT)
            assert [type(exit) for exit in seen] == [Interrupted]
            tiny.vcpu.immediate_exit = False


def test_kicks_of_every_timing_are_never_lost():
    """A kick just before, during or just after KVM_RUN is entered: the vCPU always comes back."""
    with tiny_vm(b"\xe6\x80" + b"\xeb\xfc") as tiny:  # out 0x80, al; jmp back
        done = threading.Event()
        rounds = []

        def body():
            while not done.is_set():
                if isinstance(tiny.vcpu.run(), Interrupted):
                    rounds.append(1)
                    tiny.vcpu.immediate_exit = False

        thread = threading.Thread(target=body)
        thread.start()
        for i in range(200):
            before = len(rounds)
            tiny.vcpu.kick()
            deadline = time.monotonic() + LIMIT
            while len(rounds) == before:
                assert time.monotonic() < deadline, f"kick {i} was lost"
                time.sleep(0)
        done.set()
        tiny.vcpu.kick()
        thread.join(LIMIT)
        assert not thread.is_alive()


def test_other_signals_interrupt_too():
    import signal

    old = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        with tiny_vm(SPIN) as tiny:
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            assert isinstance(tiny.run(), Interrupted)
            assert tiny.vcpu.immediate_exit is False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_a_blocked_signal_does_not_interrupt_until_the_mask_says_so():
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    old = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with tiny_vm(SPIN) as tiny:
            me = threading.get_ident()
            for blocked, expected in (([signal.SIGUSR1], LIMIT), ([], 0.1), (None, LIMIT)):
                tiny.vcpu.set_signal_mask(blocked)
                tiny.vcpu.immediate_exit = False
                threads = [
                    threading.Timer(0.02, lambda: signal.pthread_kill(me, signal.SIGUSR1)),
                    threading.Timer(0.3, tiny.vcpu.kick),
                ]
                for thread in threads:
                    thread.start()
                assert isinstance(tiny.vcpu.run(), Interrupted)
                assert tiny.vcpu.immediate_exit is (expected == LIMIT)
                for thread in threads:
                    thread.join()
                signal.sigtimedwait([signal.SIGUSR1], 0)
            with pytest.raises(ValueError, match="65 is no signal"):
                tiny.vcpu.set_signal_mask([65])
    finally:
        signal.signal(signal.SIGUSR1, old)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])


def test_running_a_closed_vcpu():
    with tiny_vm() as tiny:
        tiny.vcpu.close()
        with pytest.raises(KvmError, match=r"KVM_RUN failed: Bad file descriptor .*closed"):
            tiny.vcpu.run()
