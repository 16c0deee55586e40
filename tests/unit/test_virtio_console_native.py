"""The console's output in C, held to the Python path: the same driver, the same output, the same memory."""

from __future__ import annotations

import random
from struct import pack

import pytest

from pyvmm._native import build_rings
from pyvmm.virtio import consoleplane, spec
from pyvmm.virtio.console import PIECE, VirtioConsole
from pyvmm.virtio.native import PROBLEM, lib
from pyvmm.virtio.port import Port
from tests.support.virtiodriver import HEAP, NEXT, WRITE, Driver

pytestmark = pytest.mark.skipif(bool(PROBLEM), reason=PROBLEM)


class Guest(Driver):
    """A console and one more port; each output may hold the port, as a back-end that is full does."""

    def __init__(self, native):
        self.heard = [bytearray(), bytearray()]
        self.pieces = []
        self.hold_after = [0, 0]
        self.ports = [Port(name, self.output(number)) for number, name in enumerate(("", "one"))]
        super().__init__(VirtioConsole(self.ports), ram=2 << 20)
        self.device.native = native

    def output(self, number):
        def output(data):
            self.heard[number] += data
            self.pieces.append(len(data))
            self.hold_after[number] -= 1
            if self.hold_after[number] == 0:
                self.ports[number].hold()

        return output

    def release(self):
        for port in self.ports:
            port.release()

    def state(self):
        return {
            "heard": self.heard,
            "status": self.status,
            "error": self.device.error,
            "positions": [(queue._next_avail, queue._next_used, queue.in_flight) for queue in self.device.queues],
            "in hand": [(port.chain is not None, port.sent) for port in self.ports],
            "memory": self.memory.read(0, self.memory.size),
        }


class Chooser(random.Random):
    """Draws actions; each is a function of one guest, and does the same to each."""

    def __init__(self, seed):
        super().__init__(seed)
        self.byte = 0

    def text(self, length):
        self.byte = (self.byte + 1) & 0xFF
        return bytes((self.byte + at) & 0xFF for at in range(251)) * (length // 251 + 1)

    def cut(self, data):
        edges = sorted(self.randrange(len(data) + 1) for _ in range(self.choice((0, 0, 0, 1, 3))))
        return [data[a:b] for a, b in zip([0, *edges], [*edges, len(data)], strict=True)]

    def write(self):
        queue = self.choice((1, 1, 5))
        lengths = [self.choice((1, 64, 64, 300, 4096, 0, PIECE, PIECE + 1, 40_000)) for _ in range(self.randrange(9))]
        chains = [self.cut(self.text(length)[:length]) for length in lengths]
        writable = [8] if self.random() < 0.1 else []

        def write(guest):
            ring = guest.rings[queue]
            for number, chain in enumerate(chains):
                ring.used()
                if len(ring.free) > len(chain) + 1:
                    ring.add(guest.heap, chain, writable, publish=number % 3 != 2, indirect=number % 2 == 1)
            ring.publish()
            guest.kick(queue)

        return write

    def hold(self):
        number, after = self.randrange(2), self.randrange(3)

        def hold(guest):
            guest.hold_after[number] = after
            if not after:
                guest.ports[number].hold()

        return hold

    def break_ring(self):
        kind = self.randrange(4)

        def break_ring(guest):
            ring = guest.rings[1]
            ring.used()
            if len(ring.free) > 6:
                ring.add(guest.heap, [b"before"], publish=False)
                ring.add_buffers(
                    [
                        [(guest.memory.size - 8, 9, 0)],
                        [(HEAP, 64, WRITE), (HEAP, 64, 0)],
                        [(HEAP, 64, 0), (0, 0, NEXT)],
                        [(HEAP, 0xFFFFFFFF, 0)],
                    ][kind]
                )
            guest.kick(1)

        return break_ring

    def restart(self):
        without = [bit for bit in (spec.CONSOLE_F_MULTIPORT, spec.F_RING_EVENT_IDX) if self.random() < 0.3]

        def restart(guest):
            guest.bring_up(without=without, size=64)
            for number in range(2):
                guest.send(3, [pack("<IHH", number, spec.CONSOLE_DEVICE_READY, 1)])

        return restart


@pytest.mark.parametrize("seed", range(30))
def test_both_paths_do_the_same(seed):
    choose = Chooser(seed)
    guests = [Guest(native) for native in (False, True)]
    actions = [choose.restart()]
    for _ in range(50):
        kind = choose.choice(("write",) * 12 + ("hold", "hold", "restart", "break_ring"))
        actions.append(getattr(choose, kind)())
    for number, action in enumerate(actions):
        for guest in guests:
            action(guest)
            guest.release()
            if guest.needs_reset:
                guest.bring_up()
        python, native = (guest.state() for guest in guests)
        for name in python:
            assert native[name] == python[name], f"{name} after action {number}"
    assert max(guests[1].pieces) <= PIECE and len(guests[1].pieces) < len(guests[0].pieces)
    for guest in guests:
        guest.close()


def test_output_is_given_back_after_it_was_handed_out():
    """A back-end that blocks, or fails, has not taken it: no buffer is used before."""
    guest = Guest(True).bring_up()
    ring = guest.rings[1]
    seen = []
    guest.ports[0].output = lambda data: seen.append((len(data), ring.used_index))
    for _ in range(3):
        ring.add(guest.heap, [b"x" * 64], publish=False)
    ring.publish()
    guest.kick(1)
    assert seen == [(192, 0)] and ring.used_index == 3
    guest.close()


def test_a_port_that_is_held_gets_no_more_and_its_chains_stay_the_drivers():
    guest = Guest(True).bring_up()
    ring = guest.rings[1]
    guest.hold_after[0] = 1
    for number in range(12):
        ring.add(guest.heap, [bytes([number]) * 4096], publish=False)
    ring.publish()
    guest.kick(1)
    assert guest.pieces == [PIECE] and ring.used_index == 4
    guest.release()
    assert guest.heard[0] == b"".join(bytes([number]) * 4096 for number in range(12)) and ring.used_index == 12
    guest.close()


class Plan:
    """A fault plan that lets everything be, and counts."""

    completed = 0

    def complete(self, device, queue, chain, written):
        self.completed += 1
        queue.push(chain, written)

    def discard(self, device):
        pass


def test_a_fault_plan_sees_every_chain():
    guest = Guest(True).bring_up()
    guest.device.faults = plan = Plan()
    for _ in range(3):
        guest.request(1, [b"x"])
    assert plan.completed == 3 and guest.heard[0] == b"xxx"
    guest.close()


def test_c_gathers_as_many_chains_as_a_queue_has():
    assert lib.PYVMM_CONSOLE_BATCH == 64 == VirtioConsole([Port()]).queues[1].max_size
    assert (build_rings.HERE / "console.c").exists() and consoleplane.lib is lib
