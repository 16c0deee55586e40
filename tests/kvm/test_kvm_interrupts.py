"""Interrupts into tiny guests by every way there is, and eventfds out of them."""

from __future__ import annotations

import select
import threading
import time

import pytest

from pyvmm.errors import KvmError
from pyvmm.events import EventFd
from pyvmm.kvm import constants as k
from pyvmm.kvm.entries import IrqchipRoute, MsiRoute
from pyvmm.kvm.exits import Hlt, Interrupted, Mmio, Pio
from tests.support.tinyvm import LIMIT, RAM, tiny_vm

pytestmark = pytest.mark.needs("kvm")

APIC_IRR, APIC_SVR = 0x200, 0xF0
MSI_ADDRESS = 0xFEE00000  # to the processor with APIC id 0, Intel SDM 3A, 11.11.1

# The PIC's initialization (8259A data sheet): ICW1 0x11, vectors from 0x20, ICW3 4, ICW4 1, all but `unmasked` masked.
INIT_PIC = b"\xb0\x11\xe6\x20\xb0\x20\xe6\x21\xb0\x04\xe6\x21\xb0\x01\xe6\x21"
# sti; again: hlt; jmp again
WAIT = b"\xfb\xf4\xeb\xfd"
# mov al, 'I'; out 0xe9, al; mov al, 0x20 (end of interrupt); out 0x20, al; iret
HANDLER = b"\xb0\x49\xe6\xe9\xb0\x20\xe6\x20\xcf"


def pic_guest(irq):
    """A guest that waits for interrupt `irq` (0 to 7) of the PIC, in a VM with KVM's interrupt controllers."""
    unmask = bytes([0xB0, 0xFF & ~(1 << irq), 0xE6, 0x21])  # mov al, mask; out 0x21, al
    return INIT_PIC + unmask + WAIT


def install_handler(tiny, vector):
    tiny.memory[0x3000 : 0x3000 + len(HANDLER)] = HANDLER
    tiny.memory[vector * 4 : vector * 4 + 4] = b"\x00\x30\x00\x00"
    # LINT0 of the APIC as firmware leaves it: the PIC's interrupts.
    lapic = tiny.vcpu.get_lapic()
    lapic.regs[0x350:0x354] = list((0x700).to_bytes(4, "little"))
    tiny.vcpu.set_lapic(lapic)


def later(action):
    timer = threading.Timer(0.03, action)
    timer.start()
    return timer


def expect_interrupt(tiny):
    exit = tiny.run()
    assert isinstance(exit, Pio)
    assert (exit.port, exit.data) == (0xE9, b"I")


def expect_quiet(tiny, seconds=0.1):
    timer = threading.Timer(seconds, tiny.vcpu.kick)
    timer.start()
    assert isinstance(tiny.vcpu.run(), Interrupted)
    timer.join()
    tiny.vcpu.immediate_exit = False


def test_irq_line():
    with tiny_vm(pic_guest(4), irqchip=True) as tiny:
        install_handler(tiny, 0x24)
        for _ in range(3):
            timer = later(lambda: tiny.vm.irq_line(4, True))
            expect_interrupt(tiny)
            timer.join()
            tiny.vm.irq_line(4, False)
        expect_quiet(tiny)


def test_no_irq_line_without_irqchip():
    with tiny_vm() as tiny, pytest.raises(KvmError, match=r"KVM_IRQ_LINE .*no in-kernel interrupt controllers"):
        tiny.vm.irq_line(4, True)


def test_irqfd_is_an_edge():
    with tiny_vm(pic_guest(5), irqchip=True) as tiny:
        install_handler(tiny, 0x25)
        event = EventFd()
        tiny.vm.irqfd(event.fd, 5)
        for _ in range(3):
            timer = later(event.signal)
            expect_interrupt(tiny)
            timer.join()
        expect_quiet(tiny)
        with pytest.raises(KvmError, match=r"KVM_IRQFD .*already bound"):
            tiny.vm.irqfd(event.fd, 5)
        tiny.vm.irqfd_remove(event.fd, 5)
        event.signal()
        expect_quiet(tiny)
        event.close()


def test_irqfd_with_resample_is_a_level():
    with tiny_vm(pic_guest(6), irqchip=True) as tiny:
        if not tiny.vm.check_extension(k.KVM_CAP_IRQFD_RESAMPLE):
            pytest.skip("this host's KVM lacks KVM_CAP_IRQFD_RESAMPLE")
        install_handler(tiny, 0x26)
        event, ended = EventFd(), EventFd()
        tiny.vm.irqfd(event.fd, 6, ended.fd)
        timer = later(event.signal)
        expect_interrupt(tiny)
        timer.join()
        assert ended.drain() == 0  # the guest has not ended it yet
        expect_quiet(tiny)
        assert select.select([ended.fd], [], [], LIMIT)[0]
        assert ended.drain() == 1
        event.signal()  # still wanted
        expect_interrupt(tiny)
        event.close()
        ended.close()


def test_an_injected_interrupt():
    with tiny_vm(WAIT) as tiny:
        tiny.memory[0x3000 : 0x3000 + len(HANDLER)] = HANDLER
        tiny.memory[0x40 * 4 : 0x40 * 4 + 4] = b"\x00\x30\x00\x00"
        assert isinstance(tiny.run(), Hlt)
        tiny.vcpu.interrupt(0x40)
        expect_interrupt(tiny)


def test_no_injection_with_irqchip():
    with tiny_vm(irqchip=True) as tiny, pytest.raises(KvmError, match=r"KVM_INTERRUPT .*use irq_line or an irqfd"):
        tiny.vcpu.interrupt(0x40)


# --- Messages and routes -----------------------------------------------------------------------------------------


@pytest.fixture
def apic():
    """A TinyVm whose local APIC is on, and a look at its requests."""
    with tiny_vm(irqchip=True) as tiny:
        lapic = tiny.vcpu.get_lapic()
        lapic.regs[APIC_SVR + 1] = 1  # SDM 3A, 11.4.3: software enable
        tiny.vcpu.set_lapic(lapic)
        yield tiny


def requested(tiny, vector):
    """Whether the APIC has the vector in its interrupt request register, soon."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        word = APIC_IRR + 16 * (vector // 32)
        regs = bytes(tiny.vcpu.get_lapic().regs[word : word + 4])
        if int.from_bytes(regs, "little") >> vector % 32 & 1:
            return True
        time.sleep(0.001)
    return False


def test_signal_msi(apic):
    assert apic.vm.signal_msi(MSI_ADDRESS, 0x51) is True
    assert requested(apic, 0x51)


def test_a_route_to_a_message(apic):
    event = EventFd()
    apic.vm.set_gsi_routing([MsiRoute(30, MSI_ADDRESS, 0x62), IrqchipRoute(4, k.KVM_IRQCHIP_IOAPIC, 4)])
    apic.vm.irqfd(event.fd, 30)
    event.signal()
    assert requested(apic, 0x62)
    event.close()


def test_a_route_to_a_pin(apic):
    chip = apic.vm.get_irqchip(k.KVM_IRQCHIP_IOAPIC)
    assert chip.chip.ioapic.redirtbl[7] & 1 << 16  # masked after reset
    chip.chip.ioapic.redirtbl[7] = 0x73  # edge, fixed, to APIC 0
    apic.vm.set_irqchip(chip)
    assert apic.vm.get_irqchip(k.KVM_IRQCHIP_IOAPIC).chip.ioapic.redirtbl[7] == 0x73
    apic.vm.set_gsi_routing([IrqchipRoute(20, k.KVM_IRQCHIP_IOAPIC, 7)])
    apic.vm.irq_line(20, True)
    assert requested(apic, 0x73)
    apic.vm.irq_line(20, False)


def test_irq_line_status(apic):
    assert apic.vm.irq_line_status(20, True) == -1  # masked after reset, and no pin of the PIC
    apic.vm.irq_line_status(20, False)
    chip = apic.vm.get_irqchip(k.KVM_IRQCHIP_IOAPIC)
    chip.chip.ioapic.redirtbl[20] = 0x74
    apic.vm.set_irqchip(chip)
    assert apic.vm.irq_line_status(20, True) == 1  # one processor got it
    assert requested(apic, 0x74)


@pytest.mark.parametrize(
    "route", [IrqchipRoute(4, 9, 0), IrqchipRoute(4, k.KVM_IRQCHIP_IOAPIC, 99), MsiRoute(1 << 20, 0, 0)]
)
def test_routes_to_nowhere(apic, route):
    with pytest.raises(KvmError, match=r"KVM_SET_GSI_ROUTING .*does not exist"):
        apic.vm.set_gsi_routing([route])


@pytest.mark.parametrize("chip", [k.KVM_IRQCHIP_PIC_MASTER, k.KVM_IRQCHIP_PIC_SLAVE, k.KVM_IRQCHIP_IOAPIC])
def test_irqchips(apic, chip):
    state = apic.vm.get_irqchip(chip)
    assert state.chip_id == chip
    if chip != k.KVM_IRQCHIP_IOAPIC:
        state.chip.pic.imr = 0xA5
    apic.vm.set_irqchip(state)
    if chip != k.KVM_IRQCHIP_IOAPIC:
        assert apic.vm.get_irqchip(chip).chip.pic.imr == 0xA5


def test_what_can_be_made_once(apic):
    with pytest.raises(KvmError, match=r"KVM_CREATE_IRQCHIP .*already has its interrupt controllers"):
        apic.vm.create_irqchip()
    apic.vm.create_pit2(k.KVM_PIT_SPEAKER_DUMMY)
    with pytest.raises(KvmError, match=r"KVM_CREATE_PIT2 .*already has its PIT"):
        apic.vm.create_pit2()
    with pytest.raises(KvmError, match=r"KVM_CREATE_VCPU .*already has a vCPU of that index"):
        apic.vm.create_vcpu(0)


def test_the_order_of_making_things():
    with tiny_vm() as tiny:
        with pytest.raises(KvmError, match=r"KVM_CREATE_IRQCHIP .*before the first vCPU"):
            tiny.vm.create_irqchip()
        with pytest.raises(KvmError, match="KVM_CREATE_PIT2"):
            tiny.vm.create_pit2()


def test_pit(apic):
    apic.vm.create_pit2()
    apic.vm.set_pit_reinject(False)
    state = apic.vm.get_pit2()
    assert len(state.channels) == 3
    state.channels[0].count = 1193
    state.channels[0].mode = 2
    apic.vm.set_pit2(state)
    assert apic.vm.get_pit2().channels[0].count == 1193


# --- ioeventfd ---------------------------------------------------------------------------------------------------

BEYOND = b"\xb8\xff\xff\x8e\xd8"  # mov ax, 0xffff; mov ds, ax: ds:0x10 is gpa 0x100000


def test_ioeventfd_of_a_port():
    # mov al, 7; out 0x80, al; out 0x81, al; hlt
    with tiny_vm(b"\xb0\x07\xe6\x80\xe6\x81\xf4") as tiny:
        event = EventFd()
        tiny.vm.ioeventfd(event.fd, 0x80, 1, pio=True)
        exit = tiny.run()
        assert isinstance(exit, Pio)
        assert exit.port == 0x81
        assert event.drain() == 1
        with pytest.raises(KvmError, match=r"KVM_IOEVENTFD .*already has an ioeventfd"):
            tiny.vm.ioeventfd(event.fd, 0x80, 1, pio=True)
        tiny.vm.ioeventfd_remove(event.fd, 0x80, 1, pio=True)
        tiny.load(b"\xb0\x07\xe6\x80\xe6\x81\xf4")
        exit = tiny.run()
        assert isinstance(exit, Pio)
        assert exit.port == 0x80
        event.close()


def test_ioeventfd_of_memory_with_datamatch():
    # mov word [0x10], 5; mov word [0x10], 6; hlt
    with tiny_vm(BEYOND + b"\xc7\x06\x10\x00\x05\x00\xc7\x06\x10\x00\x06\x00\xf4") as tiny:
        five, nine = EventFd(), EventFd()
        tiny.vm.ioeventfd(five.fd, RAM, 2, datamatch=5)
        tiny.vm.ioeventfd(nine.fd, RAM, 2, datamatch=9)
        exit = tiny.run()
        assert isinstance(exit, Mmio)
        assert exit.data == b"\6\0"  # nobody's: an exit as ever
        assert (five.drain(), nine.drain()) == (1, 0)
        tiny.vm.ioeventfd_remove(five.fd, RAM, 2, datamatch=5)
        five.close()
        nine.close()


def test_ioeventfd_of_any_length():
    # mov byte [0x10], 1; mov word [0x10], 1; mov dword [0x10], 1; hlt
    code = BEYOND + b"\xc6\x06\x10\x00\x01\xc7\x06\x10\x00\x01\x00\x66\xc7\x06\x10\x00\x01\x00\x00\x00\xf4"
    with tiny_vm(code) as tiny:
        if not tiny.vm.check_extension(k.KVM_CAP_IOEVENTFD_ANY_LENGTH):
            pytest.skip("this host's KVM lacks KVM_CAP_IOEVENTFD_ANY_LENGTH")
        event = EventFd()
        tiny.vm.ioeventfd(event.fd, RAM, 0)
        assert isinstance(tiny.run(), Hlt)
        assert event.drain() == 3
        event.close()
