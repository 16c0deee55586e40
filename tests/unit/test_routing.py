"""What KVM is told of messages and of doorbells that move: as little as possible, and never too little."""

from __future__ import annotations

import os
import threading
import time
from errno import EBADF, ENOMEM

import pytest

from pyvmm.errors import KvmError, UsageError
from pyvmm.kvm.constants import KVM_CAP_IOEVENTFD_ANY_LENGTH, KVM_CAP_IRQ_ROUTING
from pyvmm.kvm.doorbells import MovingDoorbells
from pyvmm.kvm.entries import IrqchipRoute, MsiRoute
from pyvmm.kvm.routing import MsiWires, Routing, pins

ADDRESS = 0xFEE00000


class Vm:
    """Stands in for a VM's descriptor. `tables` has the messages of each table set, as {gsi: (address, data)}."""

    def __init__(self, routes=4096, any_length=True):
        self.capabilities = {KVM_CAP_IRQ_ROUTING: routes, KVM_CAP_IOEVENTFD_ANY_LENGTH: int(any_length)}
        self.tables = []
        self.irqfds = {}
        self.bells = set()
        self.removed = 0
        self.failing = False

    def check_extension(self, capability):
        return self.capabilities[capability]

    def set_gsi_routing(self, routes):
        if self.failing:
            raise KvmError("KVM_SET_GSI_ROUTING", ENOMEM)
        time.sleep(0)  # as a system call would, it lets other threads run
        assert len(routes) <= self.capabilities[KVM_CAP_IRQ_ROUTING]
        pinned = [(route.gsi, route.irqchip, route.pin) for route in routes if isinstance(route, IrqchipRoute)]
        assert pinned == [(route.gsi, route.irqchip, route.pin) for route in pins()], "the pins stay routed"
        messages = [route for route in routes if isinstance(route, MsiRoute)]
        assert len({route.gsi for route in messages}) == len(messages)
        self.tables.append({route.gsi: (route.address, route.data) for route in messages})

    def irqfd(self, fd, gsi):
        if self.failing:
            raise KvmError("KVM_IRQFD", ENOMEM)
        self.irqfds[fd] = gsi

    def ioeventfd(self, fd, address, length):
        assert (address, length) not in {bell[1:] for bell in self.bells}
        self.bells.add((fd, address, length))

    def ioeventfd_remove(self, fd, address, length):
        self.bells.remove((fd, address, length))
        self.removed += 1


def test_the_pins_are_routed_as_kvm_does_by_itself():
    """Linux, arch/x86/kvm/irq_comm.c, default_routing."""
    found = sorted((route.gsi, route.irqchip, route.pin) for route in pins())
    master, slave, ioapic = 0, 1, 2
    isa = [[(gsi, master if gsi < 8 else slave, gsi % 8), (gsi, ioapic, gsi)] for gsi in range(16)]
    assert found == [route for both in isa for route in both] + [(gsi, ioapic, gsi) for gsi in range(16, 24)]


def test_the_table_is_set_when_a_message_changes_and_not_otherwise():
    vm = Vm()
    routing = Routing(vm)
    assert vm.tables == [], "KVM has this table already"
    one, two = routing.allocate(), routing.allocate()
    assert (one, two) == (24, 25) and vm.tables == []
    routing.set(one, ADDRESS, 0x41)
    routing.set(two, ADDRESS, 0x42)
    routing.set(one, ADDRESS, 0x41)
    assert vm.tables[-1] == {one: (ADDRESS, 0x41), two: (ADDRESS, 0x42)} and len(vm.tables) == 2
    routing.set(one, ADDRESS | 1 << 12, 0x41)
    assert vm.tables[-1] == {one: (ADDRESS | 1 << 12, 0x41), two: (ADDRESS, 0x42)} and len(vm.tables) == 3


def test_a_gsi_given_back_is_used_again_and_leads_nowhere_at_first():
    vm = Vm()
    routing = Routing(vm)
    one, two = routing.allocate(), routing.allocate()
    routing.set(one, ADDRESS, 0x41)
    routing.release(one)
    routing.set(two, ADDRESS, 0x42)
    assert vm.tables[-1] == {two: (ADDRESS, 0x42)}
    assert routing.allocate() == one
    routing.set(one, ADDRESS, 0x41)
    assert vm.tables[-1] == {one: (ADDRESS, 0x41), two: (ADDRESS, 0x42)}


def test_there_are_as_many_messages_as_kvm_has_routes():
    vm = Vm(routes=48)
    routing = Routing(vm)
    gsis = [routing.allocate() for _ in range(routing.limit)]
    assert gsis == list(range(24, 32)), "40 routes are the pins'"
    with pytest.raises(UsageError, match="routes 8 message signalled interrupts"):
        routing.allocate()
    for gsi in gsis:
        routing.set(gsi, ADDRESS, gsi)


def test_a_table_that_kvm_refuses_is_set_again_when_asked_for_again():
    vm = Vm()
    routing = Routing(vm)
    gsi = routing.allocate()
    vm.failing = True
    with pytest.raises(KvmError):
        routing.set(gsi, ADDRESS, 0x41)
    vm.failing = False
    routing.set(gsi, ADDRESS, 0x41)
    assert vm.tables == [{gsi: (ADDRESS, 0x41)}]


def test_processors_that_route_at_the_same_time_lose_no_route():
    vm = Vm()
    routing = Routing(vm)
    wires = [MsiWires(vm, routing, 25) for _ in range(4)]

    def route(mine):
        for data in (1, 2):
            for vector in range(25):
                mine.route(vector, ADDRESS, data)

    threads = [threading.Thread(target=route, args=(mine,)) for mine in wires]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert vm.tables[-1] == dict.fromkeys(range(24, 124), (ADDRESS, 2)) and len(vm.tables) == 200
    for mine in wires:
        mine.close()


def test_every_vector_has_an_eventfd_of_its_own():
    vm = Vm()
    wires = MsiWires(vm, Routing(vm), 3)
    assert list(vm.irqfds.values()) == [24, 25, 26]
    wires.signal(1)
    assert [os.eventfd_read(fd) for fd, gsi in vm.irqfds.items() if gsi == 25] == [1]
    assert vm.irqfds[wires.fd(2)] == 26
    wires.route(1, ADDRESS, 0x41)
    wires.unroute(1)
    wires.route(1, ADDRESS, 0x41)
    assert vm.tables == [{25: (ADDRESS, 0x41)}], "masking and unmasking costs nothing"
    fds = list(vm.irqfds)
    wires.close()
    wires.close()
    for fd in fds:
        with pytest.raises(OSError) as caught:
            os.fstat(fd)
        assert caught.value.errno == EBADF


def test_wires_that_cannot_be_opened_leave_nothing_behind():
    vm = Vm()
    routing = Routing(vm)
    vm.failing = True
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KvmError):
        MsiWires(vm, routing, 3)
    assert len(os.listdir("/proc/self/fd")) == before and routing.allocate() == 24


# --- Doorbells -------------------------------------------------------------------------------------------------------


def test_a_doorbell_is_kvms_once_it_has_been_rung():
    vm = Vm()
    bells = MovingDoorbells(vm, [(7, 0x3000), (8, 0x3004)])
    bells.rung(0)  # its registers are nowhere: somebody was late
    bells.move(0xE0000000)
    assert vm.bells == set()
    bells.rung(1)
    bells.rung(1)
    assert vm.bells == {(8, 0xE0003004, 0)}
    bells.rung(0)
    assert vm.bells == {(7, 0xE0003000, 0), (8, 0xE0003004, 0)}


def test_doorbells_go_where_the_registers_go():
    vm = Vm()
    bells = MovingDoorbells(vm, [(7, 0x3000), (8, 0x3004)])
    for _ in range(2):  # as a kernel does that measures the registers
        bells.move(0xE0000000)
        bells.move(None)
    bells.move(0xE0000000)
    bells.rung(1)
    bells.move(0xE0000000)
    assert vm.removed == 0
    bells.move(0xE0010000)
    assert vm.bells == set()
    bells.rung(1)
    assert vm.bells == {(8, 0xE0013004, 0)}
    bells.move(None)
    assert vm.bells == set() and vm.removed == 2
    bells.rung(1)
    assert vm.bells == set()


def test_where_kvm_has_no_doorbell_of_any_width_it_is_a_word():
    vm = Vm(any_length=False)
    bells = MovingDoorbells(vm, [(7, 0x3000)])
    bells.move(0xE0000000)
    bells.rung(0)
    assert vm.bells == {(7, 0xE0003000, 2)}
