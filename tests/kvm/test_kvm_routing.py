"""Messages into a guest by way of routes that change, and doorbells that move, with KVM itself."""

from __future__ import annotations

import time

import pytest

from pyvmm.events import EventFd
from pyvmm.kvm import constants as k
from pyvmm.kvm.doorbells import MovingDoorbells
from pyvmm.kvm.exits import Hlt, Mmio
from pyvmm.kvm.routing import MsiWires, Routing
from tests.support.tinyvm import LIMIT, RAM, TinyVm, tiny_vm

pytestmark = pytest.mark.needs("kvm")

APIC_IRR, APIC_SVR = 0x200, 0xF0
ADDRESS = 0xFEE00000  # to the processor with APIC id 0, Intel SDM 3A, 11.11.1


@pytest.fixture
def apic():
    """A TinyVm whose local APIC is on; its guest does not run, so that requests stay."""
    with tiny_vm(irqchip=True) as tiny:
        lapic = tiny.vcpu.get_lapic()
        lapic.regs[APIC_SVR + 1] = 1  # SDM 3A, 11.4.3: software enable
        tiny.vcpu.set_lapic(lapic)
        yield tiny


def requests(tiny: TinyVm) -> set[int]:
    """The vectors in the APIC's interrupt request register."""
    regs = bytes(tiny.vcpu.get_lapic().regs)
    words = (int.from_bytes(regs[APIC_IRR + 16 * word : APIC_IRR + 16 * word + 4], "little") for word in range(8))
    return {32 * number + bit for number, word in enumerate(words) for bit in range(32) if word >> bit & 1}


def soon(tiny: TinyVm, vectors: set[int]) -> bool:
    """Whether these and no others are requested before long."""
    deadline = time.monotonic() + LIMIT
    while requests(tiny) != vectors and time.monotonic() < deadline:
        time.sleep(0.001)
    return requests(tiny) == vectors


def test_a_message_reaches_the_guest_and_a_changed_one_goes_elsewhere(apic: TinyVm) -> None:
    routing = Routing(apic.vm)
    assert routing.limit >= 1024 - 40  # since Linux 2.6.30
    wires = MsiWires(apic.vm, routing, 2)
    wires.signal(0)  # no route yet: nothing comes of it
    wires.route(0, ADDRESS, 0x51)
    wires.signal(0)
    assert soon(apic, {0x51})
    wires.route(0, ADDRESS, 0x52)  # the irqfd stays as it is
    wires.route(1, ADDRESS, 0x53)
    wires.signal(0)
    wires.signal(1)
    assert soon(apic, {0x51, 0x52, 0x53})
    wires.route(0, ADDRESS | 1 << 12, 0x54)  # to an APIC that is not there
    wires.signal(0)
    time.sleep(0.01)
    assert requests(apic) == {0x51, 0x52, 0x53}
    wires.close()


def test_a_hundred_vectors_are_a_hundred_interrupts(apic: TinyVm) -> None:
    routing = Routing(apic.vm)
    devices = [MsiWires(apic.vm, routing, 5) for _ in range(20)]
    vectors = iter(range(0x40, 0x40 + 100))
    for wires in devices:
        for number in range(5):
            wires.route(number, ADDRESS, next(vectors))
    assert requests(apic) == set()
    for wires in devices:
        for number in range(5):
            wires.signal(number)
    assert soon(apic, set(range(0x40, 0x40 + 100)))
    for wires in devices:
        wires.close()


def test_messages_leave_the_pins_routed(apic: TinyVm) -> None:
    """Also pin 20, which only the I/O APIC has, and pin 9, which a PIC has as well."""
    chip = apic.vm.get_irqchip(k.KVM_IRQCHIP_IOAPIC)
    for pin, vector in ((9, 0x61), (20, 0x62)):
        chip.chip.ioapic.redirtbl[pin] = vector
    apic.vm.set_irqchip(chip)
    wires = MsiWires(apic.vm, Routing(apic.vm), 1)
    wires.route(0, ADDRESS, 0x63)
    for gsi in (9, 20):
        apic.vm.irq_line(gsi, True)
    assert soon(apic, {0x61, 0x62})
    assert apic.vm.get_irqchip(k.KVM_IRQCHIP_PIC_SLAVE).chip.pic.irr & 1 << (9 - 8)
    wires.close()


def test_a_doorbell_moves_with_its_registers() -> None:
    # mov ax, 0xffff; mov ds, ax (ds:0x10 is gpa 0x100000); mov word [0x10], 0; mov word [0x14], 0; hlt
    code = b"\xb8\xff\xff\x8e\xd8" + b"\xc7\x06\x10\x00\x00\x00" + b"\xc7\x06\x14\x00\x00\x00" + b"\xf4"
    with tiny_vm(code) as tiny:
        event = EventFd()
        bells = MovingDoorbells(tiny.vm, [(event.fd, 4)])
        bells.move(RAM - 4)
        exit = tiny.run()
        assert isinstance(exit, Mmio) and exit.gpa == RAM  # not KVM's before it has been rung
        bells.rung(0)
        tiny.finish()
        tiny.load(code)
        exit = tiny.run()
        assert isinstance(exit, Mmio) and exit.gpa == RAM + 4
        assert event.drain() == 1
        bells.move(RAM)
        bells.rung(0)
        tiny.finish()
        tiny.load(code)
        exit = tiny.run()
        assert isinstance(exit, Mmio) and exit.gpa == RAM
        assert isinstance(tiny.run(), Hlt)
        assert event.drain() == 1
        event.close()
