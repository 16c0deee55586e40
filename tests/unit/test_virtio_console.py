"""The console device: bytes both ways, the control queues' dialogue, and ports on streams, sockets and files."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from functools import partial
from struct import pack, unpack

import pytest

from pyvmm.backends.capture import CaptureConsole
from pyvmm.backends.ports import PortLink, PortStream, connect, make_port_backend
from pyvmm.backends.sink import HIGH_WATER
from pyvmm.errors import BackendError, PyvmmError, TimeLimitError, UsageError
from pyvmm.virtio import spec
from pyvmm.virtio.console import CONFIG, CONTROL, PIECE, VirtioConsole
from pyvmm.virtio.plane import DataPlane
from pyvmm.virtio.port import INPUT_LIMIT, Port
from tests.support.cli import wait_for
from tests.support.headers import macros
from tests.support.virtiodriver import NEXT, WRITE, Driver

MULTIPORT = [spec.CONSOLE_F_MULTIPORT]
READY, ADD, PORT_READY = spec.CONSOLE_DEVICE_READY, spec.CONSOLE_DEVICE_ADD, spec.CONSOLE_PORT_READY
CONSOLE, RESIZE = spec.CONSOLE_CONSOLE_PORT, spec.CONSOLE_RESIZE
OPEN, NAME = spec.CONSOLE_PORT_OPEN, spec.CONSOLE_PORT_NAME


class Guest(Driver):
    """A driver of a console with the ports `names`, the first a console; keeps what each port puts out."""

    def __init__(self, *names, console="", limit=INPUT_LIMIT):
        self.outputs = [[] for _ in range(len(names) + 1)]
        self.ports = [
            Port(name, output.append, limit=limit) for name, output in zip((console, *names), self.outputs, strict=True)
        ]
        super().__init__(VirtioConsole(self.ports))

    def output(self, number=0):
        return b"".join(self.outputs[number])

    # --- Control queues ---------------------------------------------------------------------------------------------

    def say(self, number, event, value=0):
        """A control message of the driver's."""
        written, _ = self.request(3, [pack("<IHH", number, event, value)])
        assert written == 0

    def heard(self):
        """The control messages that came, as (port, event, value, what follows)."""
        ring = self.rings[2]
        found = []
        for head, written in ring.used():
            data = ring.written(head)[:written]
            found.append((*unpack("<IHH", data[:8]), data[8:]))
        return found

    def listen(self, buffers=8, size=64):
        """Provide buffers for control messages."""
        for _ in range(buffers):
            self.send(2, [], [size])

    def dialogue(self, buffers=10):
        """All that a good driver does until every port is open; returns what it was told."""
        self.listen(buffers)
        self.say(0, READY, 1)
        told = self.heard()
        for number in range(len(self.ports)):
            self.say(number, PORT_READY, 1)
        told += self.heard()
        for number in range(len(self.ports)):
            self.say(number, OPEN, 1)
        return told

    def receive(self, number=0, size=64):
        """Provide a buffer for input and return what is in it, at once."""
        queue = receiveq(number)
        head = self.send(queue, [], [size])
        ring = self.rings[queue]
        used = dict(ring.used())
        return ring.written(head)[: used[head]] if head in used else None

    def pass_on(self, data, number=0):
        """The guest writes `data`."""
        assert self.request(receiveq(number) + 1, [data])[0] == 0


def receiveq(number):
    return 2 * number + 2 if number else 0


@pytest.fixture
def guests():
    made = []

    def make(*names, up=True, without=(), **settings):
        guest = Guest(*names, **settings)
        made.append(guest)
        return guest.bring_up(without=without) if up else guest

    yield make
    for guest in made:
        guest.close()


def works(guest, number=0):
    """Bytes go through `number` both ways."""
    guest.outputs[number].clear()
    guest.pass_on(b"out", number)
    assert guest.output(number) == b"out"
    assert guest.ports[number].receive(b"in") == 2
    assert guest.receive(number) == b"in"


# --- What the device is ----------------------------------------------------------------------------------------------


def test_queues_and_configuration_are_as_the_standard_has_them(guests):
    """virtio 1.3, 5.3.2 and 5.3.4"""
    guest = guests("a", "b", up=False)
    assert guest.get("DeviceID") == 3
    assert len(guest.device.queues) == 8, "port 0's, the control queues, and two for each other port"
    assert guest.offered & 7 == 0b111
    assert [guest.config(0, 2), guest.config(2, 2), guest.config(4, 4)] == [80, 25, 3]


@pytest.mark.needs("gcc")
def test_numbers_are_those_of_the_header(tmp_path):
    """linux/virtio_console.h"""
    names = [name for name in vars(spec) if name.startswith("CONSOLE_")]
    # Linux's header calls the messages to add and remove a port after the port.
    theirs = [
        f"VIRTIO_{name.replace('DEVICE_ADD', 'PORT_ADD').replace('DEVICE_REMOVE', 'PORT_REMOVE')}" for name in names
    ]
    values = macros(tmp_path, "linux/virtio_console.h", theirs)
    assert len(names) >= 11 and dict(zip(names, values.values(), strict=True)) == {
        name: getattr(spec, name) for name in names
    }
    for struct, header in ((CONFIG, "virtio_console_config"), (CONTROL, "virtio_console_control")):
        assert macros(tmp_path, "linux/virtio_console.h", [f"sizeof(struct {header})"]).popitem()[1] == struct.size


@pytest.mark.parametrize(
    ("names", "problem"), [([], "0 ports"), ([""] * 33, "33 ports"), (["", "x", "x"], "two ports .* called 'x'")]
)
def test_ports_that_cannot_be_are_refused(names, problem):
    with pytest.raises(UsageError, match=problem):
        VirtioConsole([Port(name) for name in names])


@pytest.mark.parametrize("name", ["a/b", "a\0b", "x" * 256, "ä" * 128, "a\nb"])
def test_names_that_a_guest_could_make_no_file_of_are_refused(name):
    with pytest.raises(UsageError, match=r"port name .* \(expected"):
        Port(name)


# --- One port --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("without", [MULTIPORT, [*MULTIPORT, spec.F_RING_EVENT_IDX]])
def test_without_multiport_the_first_port_works_at_once(guests, without):
    guest = guests(without=without)
    works(guest)
    guest.listen(2)
    guest.send(3, [pack("<IHH", 0, READY, 1)])
    assert guest.rings[2].used() == [] and guest.rings[3].used() == [], "there are no other queues (5.3.2)"


def test_output_is_one_run_of_bytes_however_it_is_cut(guests):
    guest = guests(without=MULTIPORT)
    guest.request(1, [b"hel", b"", b"lo ", b"world"])
    guest.request(1, [b"a", b"b"], indirect=True)
    assert guest.output() == b"hello worldab"


def test_input_fills_the_buffers_that_are_there(guests):
    guest = guests(without=MULTIPORT)
    heads = [guest.send(0, [], [4, 4]) for _ in range(3)]
    interrupts = guest.interrupts
    assert guest.ports[0].receive(b"0123456789") == 10
    ring = guest.rings[0]
    assert ring.used() == [(heads[0], 8), (heads[1], 2)] and guest.interrupts > interrupts
    assert ring.written(heads[0]) == b"01234567" and ring.written(heads[1])[:2] == b"89"


def test_input_before_the_guest_is_up_waits_for_it(guests):
    guest = guests(up=False)
    assert guest.ports[0].receive(b"early") == 5
    guest.bring_up(without=MULTIPORT)
    assert guest.receive() == b"early"


def test_a_flood_of_input_is_bounded_and_goes_on_when_the_guest_reads(guests):
    """CVE-2020-27174 was the lack of a bound."""
    guest = guests(without=MULTIPORT)
    port, drained = guest.ports[0], []
    port.on_input_drained = lambda: drained.append(len(port._input))
    flood = os.urandom(10_000)
    assert port.receive(flood) == INPUT_LIMIT and port.receive(flood[INPUT_LIMIT:]) == 0
    got = b""
    while len(got) < INPUT_LIMIT:
        got += guest.receive(size=1000)
        assert len(drained) == (len(got) >= INPUT_LIMIT // 2)
    assert got == flood[:INPUT_LIMIT]
    assert guest.receive(size=1000) is None
    assert port.receive(b"more") == 4, "into the buffer that was left there"
    assert dict(guest.rings[0].used()).popitem()[1] == 4


def test_notifications_are_asked_for_only_while_input_waits(guests):
    guest = guests(without=[*MULTIPORT, spec.F_RING_EVENT_IDX])
    ring = guest.rings[0]
    guest.kick(0)
    assert ring.no_notify, "buffers without input for them are no news"
    guest.ports[0].receive(b"x")
    assert not ring.no_notify
    assert guest.receive() == b"x" and ring.no_notify


# --- A port that is held ---------------------------------------------------------------------------------------------


def test_output_that_nobody_takes_stays_with_the_guest(guests):
    guest = guests(without=MULTIPORT)
    guest.ports[0].hold()
    heads = [guest.send(1, [b"%d" % number]) for number in range(10)]
    assert guest.rings[1].used() == [] and guest.output() == b""
    guest.ports[0].release()
    assert [head for head, _ in guest.rings[1].used()] == heads and guest.output() == b"0123456789"
    works(guest)


def test_one_huge_write_is_handed_out_piece_by_piece_and_stops_when_held(guests):
    """Sixteen descriptors of the same 512 KiB: 8 MiB in one chain."""
    guest = guests(without=MULTIPORT)
    port, sizes = guest.ports[0], []

    def output(data):
        sizes.append(len(data))
        if len(sizes) % 4 == 0:
            port.hold()

    port.output = output
    ring = guest.rings[1]
    head = ring.add_buffers([(0x40000, 512 << 10, 0)] * 16)
    guest.kick(1)
    for number in range(1, 1000):
        assert len(sizes) <= 4 * number and max(sizes) <= PIECE
        if ring.used_index:
            break
        port.release()
    assert ring.used() == [(head, 0)] and sum(sizes) == 8 << 20


def test_a_reset_does_not_wait_until_a_huge_write_is_out(guests):
    guest = guests(without=MULTIPORT)
    sizes = []

    def output(data):
        sizes.append(len(data))
        guest.device.queues[1].ready = False  # as a reset on a vCPU does before it waits for the data plane

    guest.ports[0].output = output
    guest.rings[1].add_buffers([(0x40000, 512 << 10, 0)] * 16)
    guest.kick(1)
    assert sizes == [PIECE]
    guest.put("Status", 0)
    guest.ports[0].output = guest.outputs[0].append
    guest.bring_up(without=MULTIPORT)
    works(guest)


def test_a_reset_drops_output_in_hand_and_the_next_driver_starts_anew(guests):
    """virtio 1.3, 2.4; nothing of the old ring lands after a reset."""
    guest = guests(without=MULTIPORT)
    port = guest.ports[0]
    port.output = lambda data: (guest.outputs[0].append(data), port.hold())
    guest.send(1, [b"x" * (PIECE + 100)])
    assert len(guest.output()) == PIECE and port.chain is not None
    guest.put("Status", 0)
    assert port.chain is None and guest.rings[1].used_index == 0
    port.release()
    assert len(guest.output()) == PIECE
    port.output = guest.outputs[0].append
    guest.bring_up(without=MULTIPORT)
    works(guest)


# --- Emergency write -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 3, 0x80])
def test_an_emergency_write_works_on_an_unconfigured_device(guests, status):
    """virtio 1.3, 5.3.5.1: the device MUST allow a write to emerg_wr, even on an unconfigured device."""
    guest = guests("a", up=False)
    guest.put("Status", status)
    for size in (1, 2, 4):
        guest.put_config(8, size, 0x41)
    assert guest.output() == b"AAA", "the lower byte"
    assert guest.output(1) == b""


def test_other_fields_of_the_configuration_cannot_be_written(guests):
    guest = guests(up=False)
    before = guest.config(0, 8)
    for offset in (0, 2, 4, 9, 12, 0xEFC):
        guest.put_config(offset, 1, 0x41)
    assert guest.config(0, 8) == before and guest.output() == b""


def test_emergency_writes_have_a_bound_too(guests):
    guest = guests(up=False)
    guest.ports[0].hold()
    guest.put_config(8, 4, 0x41)
    assert guest.output() == b""


# --- The dialogue of several ports -----------------------------------------------------------------------------------


def test_the_dialogue_brings_up_every_port(guests):
    """virtio 1.3, 5.3.6.2"""
    guest = guests("org.example.agent", "log")
    guest.listen(10)
    assert guest.heard() == [], "nothing before the driver is ready"
    guest.say(0, READY, 1)
    assert guest.heard() == [(0, ADD, 0, b""), (1, ADD, 0, b""), (2, ADD, 0, b"")]
    guest.say(0, PORT_READY, 1)
    assert guest.heard() == [(0, CONSOLE, 1, b""), (0, OPEN, 1, b"")]
    guest.say(2, PORT_READY, 1)
    assert guest.heard() == [(2, NAME, 1, b"log"), (2, OPEN, 1, b"")]
    guest.say(1, PORT_READY, 1)
    assert guest.heard() == [(1, NAME, 1, b"org.example.agent"), (1, OPEN, 1, b"")]
    for number in range(3):
        guest.say(number, OPEN, 1)
        works(guest, number)


def test_a_port_is_added_once_and_below_max_nr_ports(guests):
    """virtio 1.3, 5.3.6.2.1: the device MUST NOT specify a port which exists in a PORT_ADD message, nor a port which
    is equal or greater than max_nr_ports; nor remove one that was not created."""
    guest = guests("a", "b")
    told = guest.dialogue()
    for _ in range(3):
        guest.listen(4)
        guest.say(0, READY, 1)
        for number in (0, 1, 2, 3, 1000, 0xFFFFFFFF):
            guest.say(number, PORT_READY, 1)
        told += guest.heard()
    added = [number for number, event, _, _ in told if event == ADD]
    assert added == [0, 1, 2] and max(added) < guest.config(4, 4)
    assert not any(event == spec.CONSOLE_DEVICE_REMOVE for _, event, _, _ in told)


def test_a_driver_that_failed_is_told_nothing(guests):
    guest = guests("a")
    guest.listen()
    guest.say(0, READY, 0)
    assert guest.heard() == []
    guest.say(0, READY, 1)
    guest.heard()
    guest.say(1, PORT_READY, 0)
    assert guest.heard() == []
    guest.say(1, PORT_READY, 1)
    assert [event for _, event, _, _ in guest.heard()] == [NAME, OPEN]


def test_what_a_driver_says_of_a_port_that_it_was_not_told_of_is_ignored(guests):
    guest = guests("a")
    guest.say(0, READY, 1)
    for number in (0, 1):
        guest.say(number, PORT_READY, 1)
        guest.say(number, OPEN, 1)
    guest.listen(8)
    assert [event for _, event, _, _ in guest.heard()] == [ADD, ADD]
    assert not guest.ports[1].open


def test_after_a_reset_the_dialogue_begins_again(guests):
    guest = guests("a")
    first = guest.dialogue()
    guest.bring_up()
    guest.listen(8)
    assert guest.heard() == [], "until the new driver is ready"
    guest.bring_up()
    assert guest.dialogue() == first
    works(guest, 1)


def test_messages_wait_for_buffers_in_order(guests):
    guest = guests("a")
    guest.say(0, READY, 1)
    guest.say(0, PORT_READY, 1)  # not added yet, as far as the driver can know
    told = []
    for _ in range(6):
        guest.listen(1)
        told += guest.heard()
        for number, event, _, _ in list(told[-1:]):
            if event == ADD:
                guest.say(number, PORT_READY, 1)
    assert [(number, event) for number, event, _, _ in told] == [
        (0, ADD),
        (0, CONSOLE),
        (0, OPEN),
        (1, ADD),
        (1, NAME),
        (1, OPEN),
    ]


def test_input_waits_until_the_guest_has_opened_the_port(guests):
    guest = guests("a")
    assert guest.ports[1].receive(b"hello") == 5
    guest.listen(8)
    guest.say(0, READY, 1)
    guest.say(1, PORT_READY, 1)
    assert guest.receive(1) is None, "Linux drops what comes to a closed port"
    ring = guest.rings[4]
    guest.say(1, OPEN, 1)
    [(head, written)] = ring.used()
    assert ring.written(head)[:written] == b"hello"
    guest.say(1, OPEN, 0)
    guest.ports[1].receive(b"again")
    assert guest.receive(1) is None
    guest.say(1, OPEN, 1)
    assert [written for _, written in ring.used()] == [5]


def test_guests_opening_and_closing_is_seen(guests):
    guest = guests("a")
    seen = []
    guest.ports[1].on_open = seen.append
    guest.dialogue()
    guest.say(1, OPEN, 1)
    guest.say(1, OPEN, 0)
    guest.say(1, OPEN, 1)
    assert guest.ports[1].open and seen == [True, False, True]
    guest.put("Status", 0)
    assert not guest.ports[1].open and seen[-1] is False, "a reset closes it"


def test_the_host_s_connections_are_told(guests):
    guest = guests("a")
    guest.ports[1].connect(False)
    guest.listen(10)
    guest.say(0, READY, 1)
    guest.say(1, PORT_READY, 1)
    assert [event for number, event, _, _ in guest.heard() if number == 1] == [ADD, NAME], "nobody is there"
    for connected in (True, False, True):
        guest.ports[1].connect(connected)
        assert guest.heard() == [(1, OPEN, int(connected), b"")]


def test_a_new_client_is_a_close_and_an_open_even_if_the_driver_was_not_listening(guests):
    guest = guests("a")
    assert len(guest.dialogue(buffers=6)) == 6
    for _ in range(100):
        guest.ports[1].connect(False)
        guest.ports[1].connect(True)
    assert guest.heard() == []
    guest.listen(5)
    assert guest.heard() == [(1, OPEN, 0, b""), (1, OPEN, 1, b"")]


def test_a_named_port_that_nobody_is_connected_to_keeps_nothing_and_a_console_does(guests):
    guest = guests("a")
    guest.dialogue()
    for port in guest.ports:
        port.connect(False)
    guest.pass_on(b"boot messages", 0)
    guest.pass_on(b"stale", 1)
    assert guest.output(0) == b"boot messages" and guest.output(1) == b""
    guest.ports[1].connect(True)
    works(guest, 1)


def test_a_console_may_have_a_name_too(guests):
    guest = guests(console="main")
    assert [(event, more) for _, event, _, more in guest.dialogue()] == [
        (ADD, b""),
        (CONSOLE, b""),
        (NAME, b"main"),
        (OPEN, b""),
    ]


def test_a_name_is_utf_8_without_a_nul(guests):
    """virtio 1.3, 5.3.6.2"""
    guest = guests("größe")
    assert (1, NAME, 1, "größe".encode()) in guest.dialogue()


# --- Sizes -----------------------------------------------------------------------------------------------------------


def test_a_size_is_in_the_configuration_and_its_change_is_told(guests):
    guest = guests()
    guest.dialogue()
    guest.heard()
    guest.acknowledge()
    generation = guest.get("ConfigGeneration")
    guest.device.resize(132, 43)
    assert [guest.config(0, 2), guest.config(2, 2)] == [132, 43]
    assert guest.get("ConfigGeneration") != generation
    assert guest.acknowledge() & spec.INTERRUPT_CONFIG_CHANGE
    assert guest.heard() == [(0, RESIZE, 0, pack("<HH", 132, 43))], "columns first (5.3.6.2)"


def test_only_the_last_of_many_sizes_waits(guests):
    guest = guests()
    guest.say(0, READY, 1)
    guest.listen(1)
    guest.say(0, PORT_READY, 1)
    for columns in range(1, 1000):
        guest.device.resize(columns, 24)
    guest.device.resize(1 << 20, 24)
    guest.listen(8)
    sizes = [more for _, event, _, more in guest.heard() if event == RESIZE]
    assert sizes == [pack("<HH", 0xFFFF, 24)]


def test_a_size_that_was_known_before_the_driver_came_is_told_with_the_console(guests):
    guest = guests(up=False)
    guest.device.resize(100, 50)
    assert guest.interrupts == 0
    guest.bring_up()
    assert [event for _, event, _, _ in guest.dialogue()] == [ADD, CONSOLE, RESIZE, OPEN]
    guest.bring_up()
    assert [event for _, event, _, _ in guest.dialogue()] == [ADD, CONSOLE, RESIZE, OPEN], "and after a reset again"


def test_without_the_feature_no_size_is_told(guests):
    guest = guests(without=[spec.CONSOLE_F_SIZE])
    guest.device.resize(100, 50)
    assert RESIZE not in [event for _, event, _, _ in guest.dialogue()]


# --- Bad drivers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0",
        b"\0" * 7,
        pack("<IHH", 0, 999, 1),
        pack("<IHH", 0, ADD, 1),
        pack("<IHH", 0, NAME, 1),
        pack("<IHH", 2, OPEN, 1),
        pack("<IHH", 0xFFFFFFFF, PORT_READY, 1),
        pack("<IHH", 0, OPEN, 0xFFFF),
        pack("<IHH", 1, PORT_READY, 1) + b"and more",
        b"\xff" * 4096,
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_control_messages_that_make_no_sense_are_ignored(guests, message, after):
    guest = guests("a")
    if after:
        guest.dialogue()
        guest.heard()
    assert guest.request(3, [message], [8] if not message else [])[0] == 0
    assert not guest.needs_reset
    if not after:
        assert {event for _, event, _, _ in guest.dialogue()} >= {ADD, CONSOLE, NAME, OPEN}
    for number in (0, 1):
        guest.say(number, OPEN, 1)
        works(guest, number)


def test_a_flood_of_control_messages_is_answered_without_growing(guests):
    guest = guests("a")
    for _ in range(300):
        guest.say(0, READY, 1)
        guest.say(0, PORT_READY, 1)
        guest.say(1, OPEN, 1)
    assert guest.heard() == []
    assert len(guest.dialogue()) == 6
    works(guest, 1)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_buffer_too_small_for_a_message_costs_none(guests, size):
    guest = guests("a")
    for _ in range(3):
        guest.send(2, [b"r"] if not size else [], [size] if size else [])
    guest.say(0, READY, 1)
    assert [written for _, written in guest.rings[2].used()] == [0, 0, 0]
    assert len(guest.dialogue()) == 6


def test_a_message_that_does_not_fit_is_cut(guests):
    guest = guests("a-long-name")
    guest.listen(10, size=12)
    guest.say(0, READY, 1)
    guest.say(1, PORT_READY, 1)
    assert (1, NAME, 1, b"a-lo") in guest.heard()


def test_readable_buffers_in_a_receiveq_and_writable_ones_in_a_transmitq_come_back(guests):
    """virtio 1.3, 5.3.6.1 forbids drivers to place them."""
    guest = guests(without=MULTIPORT)
    guest.ports[0].receive(b"input")
    assert guest.request(0, [b"readable"], []) == (0, b"")
    assert guest.request(1, [], [16]) == (0, b"\xa5" * 16)
    assert guest.request(1, [b"x"], [16]) == (0, b"\xa5" * 16)
    assert guest.receive() == b"input" and guest.output() == b"x"
    works(guest)


@pytest.mark.parametrize("queue", [0, 1, 2, 3, 4, 5])
def test_a_bad_chain_breaks_the_device_until_reset(guests, queue):
    guest = guests("a")
    guest.dialogue()
    guest.heard()
    while guest.device.queues[queue].pop() is not None:
        pass
    guest.rings[queue].descriptor(15, 0x40000, 4, NEXT | (0 if queue & 1 else WRITE), 15)
    guest.rings[queue].make_available(15)
    guest.ports[0].receive(b"x")
    guest.ports[1].receive(b"x")
    guest.ports[1].connect(False)
    guest.kick(queue)
    assert guest.needs_reset
    guest.bring_up()
    guest.ports[1].connect(True)
    guest.dialogue()
    assert guest.receive(0) == b"x" and guest.receive(1) == b"x", "input that was not delivered is kept"
    works(guest, 1)


def test_a_queue_that_the_driver_did_not_set_up_is_left_alone(guests):
    guest = guests("a", up=False)
    assert guest.negotiate()
    guest.rings = []
    guest.put("Status", 15)
    for queue in range(7):
        guest.kick(queue)
    guest.ports[0].receive(b"x")
    guest.ports[1].release()
    guest.device.resize(1, 1)
    assert not guest.needs_reset
    guest.bring_up()
    guest.dialogue()
    assert guest.receive(0) == b"x"


# --- Back-ends, with a data plane ------------------------------------------------------------------------------------


class Live(Guest):
    """A guest whose device has a data plane; its second port is connected to `backend`."""

    def __init__(self, backend, name="agent"):
        super().__init__(name)
        self.errors = []
        self.over = False
        self.backend = backend
        self.plane = DataPlane(self.device, self.transport, self.errors.append)
        self.link = connect(self.ports[1], backend, over=lambda: self.over, broken=self.errors.append)
        backend.start(self.link)
        self.plane.start()
        self.bring_up(without=[spec.F_RING_EVENT_IDX])
        self.told = []

    def until(self, queue, count=1):
        """Wait until `count` more buffers of `queue` are used; returns their elements."""
        ring = self.rings[queue]
        wait_for(lambda: (ring.used_index - ring.seen) & 0xFFFF >= count, f"queue {queue}")
        return ring.used()

    def say(self, number, event, value=0):
        self.send(3, [pack("<IHH", number, event, value)])
        self.until(3)

    def hear(self, event, value):
        """Wait for a message about port 1."""

        def come():
            self.told += self.heard()
            return any(message[:3] == (1, event, value) for message in self.told)

        wait_for(come, f"event {event}")
        self.told.clear()

    def open_port(self):
        self.listen(14)
        self.say(0, READY, 1)
        self.hear(ADD, 0)
        self.say(1, PORT_READY, 1)
        self.say(1, OPEN, 1)
        return self

    def put_out(self, data):
        self.send(5, [data])
        self.until(5)

    def take_in(self, size=4096):
        head = self.send(4, [], [size])
        [(used, written)] = self.until(4)
        assert used == head
        return self.rings[4].written(head)[:written]

    def close(self):
        self.plane.close()
        super().close()
        assert self.errors == []


@pytest.fixture
def live():
    made = []

    def make(backend):
        made.append(Live(backend))
        return made[-1]

    yield make
    for guest in made:
        guest.close()


def test_a_stream_in_this_process(live):
    stream = PortStream()
    with pytest.raises(PyvmmError, match="does not run"):
        stream.send(b"too early", timeout=0)
    guest = live(stream)
    with pytest.raises(TimeLimitError, match="did not open its port within 0"):
        stream.wait_open(timeout=0.01)
    guest.open_port()
    stream.wait_open()
    guest.put_out(b"from the guest")
    assert stream.recv(4) == b"from" and stream.recv() == b" the guest"
    with pytest.raises(TimeLimitError, match="wrote nothing to its port within"):
        stream.recv(timeout=0.01)
    stream.send(b"to the guest")
    assert guest.take_in() == b"to the guest"


def test_a_stream_carries_much_both_ways_and_holds_little(live):
    stream = PortStream()
    guest = live(stream).open_port()
    data = os.urandom(300_000)
    sender = threading.Thread(target=stream.send, args=(data,))
    sender.start()
    got = b""
    while len(got) < len(data):
        assert len(guest.ports[1]._input) <= INPUT_LIMIT
        got += guest.take_in()
    sender.join()
    assert got == data

    heads = [guest.send(5, [data[at : at + 30_000]]) for at in range(0, len(data), 30_000)]
    wait_for(lambda: guest.ports[1].held, "a full stream")
    assert len(stream._unread) <= (64 << 10) + PIECE, "and the rest is still the guest's"
    read = b""
    while len(read) < len(data):
        read += stream.recv(10_000)
        assert len(stream._unread) <= (64 << 10) + PIECE
    assert read == data and [head for head, _ in guest.until(5, len(heads))] == heads


def test_a_stream_ends_with_the_run(live):
    stream = PortStream()
    guest = live(stream).open_port()
    guest.put_out(b"last words")
    guest.over = True
    assert stream.recv() == b"last words" and stream.recv() == b""
    with pytest.raises(PyvmmError, match="does not run: 1 bytes"):
        stream.send(b"x")


def test_a_send_that_the_guest_does_not_read_times_out(live):
    stream = PortStream()
    live(stream)
    with pytest.raises(TimeLimitError, match="did not read its port: 904 bytes left after 0.05 s"):
        stream.send(bytes(5000), timeout=0.05)


def test_closing_a_stream_that_is_held_lets_the_guest_go_on(live):
    stream = PortStream(limit=100)
    guest = live(stream).open_port()
    guest.put_out(bytes(200))
    assert guest.ports[1].held
    guest.send(5, [bytes(200)])
    stream.close()
    guest.until(5)


def test_a_capture_console_serves_as_a_port_too(live):
    console = CaptureConsole()
    guest = live(console).open_port()
    guest.put_out(b"login: ")
    console.expect("login: ", timeout=10)
    console.send("root\n")
    assert guest.take_in() == b"root\n"


def test_a_unix_socket_whose_clients_come_and_go(live, tmp_path):
    path = str(tmp_path / "port")
    guest = live(make_port_backend(f"unix:{path}", "agent", say=print)).open_port()
    assert not guest.ports[1].connected
    guest.put_out(b"nobody reads this")
    for number in range(2):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(path)
            guest.hear(OPEN, 1)
            client.send(b"question %d" % number)
            assert guest.take_in() == b"question %d" % number
            guest.put_out(b"answer")
            assert client.recv(100) == b"answer"
        guest.hear(OPEN, 0)
    guest.backend.close()
    assert not os.path.exists(path)


def test_a_client_that_does_not_read_holds_the_guest_s_output(live, tmp_path):
    path = str(tmp_path / "port")
    guest = live(make_port_backend(f"unix:{path}", "agent", say=print)).open_port()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(path)
        guest.hear(OPEN, 1)
        heads, data = [], os.urandom(50_000)
        for _ in range(14):
            heads.append(guest.send(5, [data]))
        wait_for(lambda: guest.ports[1].held, "a full socket")
        assert guest.device.queues[5].ready and len(guest.rings[5].used()) < len(heads)
        got = b""
        while len(got) < 14 * len(data):
            got += client.recv(1 << 16)
        assert got == data * 14
    guest.hear(OPEN, 0)
    guest.put_out(b"goes nowhere")


def test_a_client_that_leaves_without_reading_lets_the_guest_go_on(live, tmp_path):
    path = str(tmp_path / "port")
    guest = live(make_port_backend(f"unix:{path}", "agent", say=print)).open_port()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        guest.hear(OPEN, 1)
        for _ in range(14):
            guest.send(5, [bytes(50_000)])
        wait_for(lambda: guest.ports[1].held, "a full socket")
    guest.hear(OPEN, 0)
    wait_for(lambda: guest.rings[5].used_index == 14, "the rest of the output")
    assert guest.backend._sink.backlog <= HIGH_WATER


def test_a_file_takes_what_the_guest_writes(live, tmp_path):
    path = tmp_path / "log"
    guest = live(make_port_backend(f"file:{path}", "agent", say=print)).open_port()
    guest.hear(OPEN, 1)
    guest.put_out(b"line\n")
    assert guest.backend.drain(10) and path.read_bytes() == b"line\n"


def test_a_file_that_cannot_be_written_is_a_closed_port(live):
    guest = live(make_port_backend("file:/dev/full", "agent", say=print)).open_port()
    guest.hear(OPEN, 1)
    guest.put_out(b"line\n")
    guest.hear(OPEN, 0)
    wait_for(lambda: guest.errors == [errno.ENOSPC], "the error that closed it")
    guest.errors.clear()
    guest.put_out(b"goes nowhere")


def test_a_pseudo_terminal_is_open_while_somebody_has_it_open(live):
    said = []
    guest = live(make_port_backend("pty", "agent", say=said.append)).open_port()
    assert said == [f"port agent on {guest.backend.name}"]
    slave = os.open(guest.backend.name, os.O_RDWR | os.O_NOCTTY)
    guest.hear(OPEN, 1)
    guest.put_out(b"hello")
    assert select.select([slave], [], [], 10)[0] and os.read(slave, 100) == b"hello"
    os.close(slave)
    guest.hear(OPEN, 0)


@pytest.mark.parametrize("text", ["", "stdio", "file:", "unix:", "pty:x", "tcp:1"])
def test_a_port_connected_to_nonsense_is_refused(text):
    with pytest.raises(UsageError, match="port agent: .*expected file:PATH, unix:PATH or pty"):
        make_port_backend(text, "agent", say=print)


def test_errors_of_a_back_end_name_the_port(tmp_path):
    for text in (f"file:{tmp_path}/no/such", f"unix:{tmp_path}/no/such", f"unix:{tmp_path}"):
        port = Port("agent")
        backend = make_port_backend(text, "agent", say=print)
        with pytest.raises(BackendError, match="^port agent: "):
            backend.start(connect(port, backend, over=lambda: False))


def test_nothing_rings_a_data_plane_that_has_ended(live):
    guest = live(PortStream()).open_port()
    guest.plane.close()
    assert guest.ports[1].receive(b"late") == 4
    guest.ports[1].release()
    guest.ports[1].connect(False)
    guest.device.resize(1, 2)


def test_closing_the_device_closes_what_its_ports_are_connected_to(live):
    stream = PortStream()
    guest = live(stream)
    guest.plane.close()
    guest.device.close()
    assert stream.recv(timeout=0) == b""


def test_sizes_input_and_connections_from_many_threads(live):
    """Nothing is lost, doubled or deadlocks while the guest works."""
    stream = PortStream()
    guest = live(stream).open_port()
    stop = threading.Event()

    def meddle(what):
        number = 0
        while not stop.is_set():
            what(number := number + 1)
            time.sleep(0.0005)

    threads = [
        threading.Thread(target=meddle, args=(what,))
        for what in (
            lambda number: guest.device.resize(number, 24),
            lambda number: guest.ports[0].connect(number % 2 == 0),
            lambda number: guest.ports[0].receive(b"noise"),
        )
    ]
    for thread in threads:
        thread.start()
    sender = threading.Thread(target=partial(stream.send, bytes(range(256)) * 100))
    sender.start()
    got = b""
    while len(got) < 25_600:
        got += guest.take_in(1000)
        guest.acknowledge()
    stop.set()
    for thread in (*threads, sender):
        thread.join(20)
        assert not thread.is_alive()
    assert got == bytes(range(256)) * 100 and not guest.needs_reset


def test_a_link_is_what_back_ends_ask_for():
    port = Port("a")
    over = [False]
    link = PortLink(port, lambda: over[0])
    assert link.receive(b"x") == 1 and not link.over
    link.hold()
    assert port.held
    link.release()
    assert not port.held
    over[0] = True
    assert link.over
    link.broken(errno.EPIPE)
    assert not port.connected
