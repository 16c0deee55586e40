"""What virtio 1.3 demands of every device, requirement by requirement; that each test can fail is shown by
`python -m tests.conformance.run`, which also lists those tests of single devices that name a requirement.
"""

import errno
import select
import time
from functools import partial
from struct import pack, unpack
from types import SimpleNamespace

import pytest

from pyvmm.virtio import rng, spec
from pyvmm.virtio.balloon import VirtioBalloon
from pyvmm.virtio.block import VirtioBlock
from pyvmm.virtio.console import VirtioConsole
from pyvmm.virtio.net import CONTROL, RECEIVE, VirtioNet
from pyvmm.virtio.port import Port
from pyvmm.virtio.queue import Virtqueue
from pyvmm.virtio.rng import VirtioRng
from tests.support.echo import CONFIG, Echo, WatchedRing
from tests.support.memorydisk import MemoryDisk
from tests.support.virtiodriver import INDIRECT, NEXT, RAM, WRITE, Driver

MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("525400abcdef")
FLAGS, INDEX = 0, 1
"""Words of the used ring."""
USED, CHANGED = spec.INTERRUPT_USED_BUFFER, spec.INTERRUPT_CONFIG_CHANGE


@pytest.fixture
def drivers():
    """Makes drivers, not brought up yet, and closes them."""
    made = []

    def make(device=None):
        made.append(Driver(device or Echo()))
        return made[-1]

    yield make
    for driver in made:
        driver.close()


@pytest.fixture
def echo(drivers):
    return drivers()


class Network:
    """A back-end of a network device: gives what is in `incoming`, and keeps nothing."""

    def __init__(self, vnet_header=False):
        self.vnet_header = vnet_header
        self.incoming = []

    def fileno(self):
        return 1000

    def offloads(self, checksum, tso4, tso6, ecn):
        pass

    def receive(self):
        return memoryview(self.incoming.pop(0)) if self.incoming else None

    def send(self, frame):
        return True

    def close(self):
        pass


DEVICES = {
    "block": lambda: VirtioBlock(MemoryDisk()),
    "block, several queues": lambda: VirtioBlock(MemoryDisk(), queues=3),
    "block, read-only": lambda: VirtioBlock(MemoryDisk(readonly=True)),
    "block, unsafe": lambda: VirtioBlock(MemoryDisk(durable=False)),
    "net": lambda: VirtioNet(Network(), mac=MAC, spoof=False),
    "net with offloads and MTU": lambda: VirtioNet(Network(vnet_header=True), mac=MAC, mtu=1500),
    "console": lambda: VirtioConsole([Port(), Port("other")]),
    "entropy": VirtioRng,
    "balloon": VirtioBalloon,
    "echo": Echo,
}
each_device = pytest.mark.parametrize("name", DEVICES)


def frame(destination=MAC, kind=b"\x08\x00", length=60):
    return (destination + OTHER + kind).ljust(length, b"\x5a")


def arrive(driver, data):
    """A frame comes from outside: what the driver gets of it, as header and frame, or None."""
    device = driver.device
    ring = driver.rings[RECEIVE]
    driver.send(RECEIVE, [], [2048])
    device._backend.incoming.append(data)
    with device.plane:
        device.guarded(partial(device.ready, 1000, select.POLLIN))
    for head, written in ring.used():
        return ring.written(head)[:12], ring.written(head)[12:written]
    return None


# --- 2.1, device status -----------------------------------------------------------------------------------------------


def waiting(driver):
    """Everything but DRIVER_OK, and a good chain that waits."""
    assert driver.negotiate()
    driver.set_up_queues()
    driver.rings[0].add(driver.heap, [b"wait"], [4])
    driver.kick()
    driver.kick()


def test_nothing_is_consumed_before_driver_ok(echo):
    """virtio 1.3, 2.1.2"""
    waiting(echo)
    assert echo.device.served == 0 and echo.rings[0].used() == []
    echo.put("Status", 15)
    assert echo.device.served == 1 and len(echo.rings[0].used()) == 1


def test_no_used_buffer_notification_comes_before_driver_ok(echo):
    """virtio 1.3, 2.1.2"""
    waiting(echo)
    assert echo.interrupts == 0 and echo.get("InterruptStatus") == 0
    echo.put("Status", 15)
    assert echo.interrupts == 1 and echo.get("InterruptStatus") == USED


def test_a_device_that_needs_a_reset_says_so(echo):
    """virtio 1.3, 2.1.2: with DRIVER_OK, by a configuration change notification."""
    echo.bring_up()
    echo.rings[0].make_available(16)
    echo.kick()
    assert echo.needs_reset and echo.interrupts == 1 and echo.get("InterruptStatus") == CHANGED


# --- 2.2, feature bits ------------------------------------------------------------------------------------------------

REQUIRED = {
    "net": {
        spec.NET_F_GUEST_TSO4: (spec.NET_F_GUEST_CSUM,),
        spec.NET_F_GUEST_TSO6: (spec.NET_F_GUEST_CSUM,),
        spec.NET_F_GUEST_ECN: (spec.NET_F_GUEST_TSO4, spec.NET_F_GUEST_TSO6),
        spec.NET_F_GUEST_UFO: (spec.NET_F_GUEST_CSUM,),
        spec.NET_F_HOST_TSO4: (spec.NET_F_CSUM,),
        spec.NET_F_HOST_TSO6: (spec.NET_F_CSUM,),
        spec.NET_F_HOST_ECN: (spec.NET_F_HOST_TSO4, spec.NET_F_HOST_TSO6),
        spec.NET_F_HOST_UFO: (spec.NET_F_CSUM,),
        spec.NET_F_CTRL_RX: (spec.NET_F_CTRL_VQ,),
        spec.NET_F_CTRL_VLAN: (spec.NET_F_CTRL_VQ,),
        spec.NET_F_CTRL_MAC_ADDR: (spec.NET_F_CTRL_VQ,),
    },
    "block": {spec.BLK_F_CONFIG_WCE: (spec.BLK_F_FLUSH,)},
}
"""5.1.3.1 and 5.2.5.2: a feature, and those of which it requires one."""


@each_device
def test_no_feature_is_offered_without_what_it_requires(drivers, name):
    """virtio 1.3, 2.2.2"""
    offered = drivers(DEVICES[name]()).offered
    for feature, others in REQUIRED.get(name.partition(",")[0].partition(" ")[0], {}).items():
        if offered >> feature & 1:
            assert any(offered >> other & 1 for other in others), feature


@each_device
def test_what_cannot_be_accepted_does_not_get_features_ok(drivers, name):
    """virtio 1.3, 2.2.2: nothing that was not offered, no feature without what it requires; what is valid is taken."""
    driver = drivers(DEVICES[name]())
    offered = driver.offered
    wrong = [offered | 1 << bit for bit in range(64) if not offered >> bit & 1]
    if name.startswith("net with"):
        wrong += [offered & ~sum(1 << other for other in others) for others in REQUIRED["net"].values()]
    for features in wrong:
        assert not driver.negotiate(features) and driver.status == 3
    for features in (offered, 1 << spec.F_VERSION_1):
        assert driver.negotiate(features)


SUPPORTED = {
    "block": (1, 2, 4, 5, 6, 9, 10, 11, 12, 13, 14),
    "net": (0, 1, 3, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 18, 20, 23),
    "console": (0, 1, 2),
    "balloon": (1, 2, 5),
}
EVERYWHERE = (spec.F_RING_INDIRECT_DESC, spec.F_RING_EVENT_IDX, spec.F_VERSION_1)


@each_device
def test_only_features_that_are_supported_are_offered(drivers, name):
    """virtio 1.3, 2.2.2: none that is reserved, another device type's, another transport's, or not implemented."""
    driver = drivers(DEVICES[name]())
    supported = (*SUPPORTED.get(name.partition(",")[0].partition(" ")[0], ()), *EVERYWHERE)
    assert driver.offered & ~sum(1 << bit for bit in supported) == 0
    for word in (2, 3, 0xFFFFFFFF):
        driver.put("DeviceFeaturesSel", word)
        assert driver.get("DeviceFeatures") == 0


# --- 2.4, reset -------------------------------------------------------------------------------------------------------


@each_device
def test_the_status_is_0_after_a_reset(drivers, name):
    """virtio 1.3, 2.4.1: from every state."""
    driver = drivers(DEVICES[name]())
    for status in (1, 3, 11, 15, 128):
        for value in (1, 3, 11, 15):
            if value <= status:
                if value == 11:
                    driver.accept(1 << spec.F_VERSION_1)
                driver.put("Status", value)
        if status == 128:
            driver.device.fail("a test")
            driver.put("Status", 128 | 15)
        driver.put("Status", 0)
        assert driver.status == 0


def test_there_is_no_notification_after_a_reset(echo):
    """virtio 1.3, 2.4.1: neither of what was in flight nor of a configuration that changes, until DRIVER_OK."""
    echo.bring_up()
    echo.send(1, [b"held"], [4])
    chain = echo.device.held[0]
    echo.put("Status", 0)
    before = echo.interrupts
    echo.device.queues[1].push(chain, 4)
    echo.device.config_changed()
    echo.device.tell(echo.device.queues[1])
    assert echo.interrupts == before and echo.get("InterruptStatus") == 0
    echo.negotiate()
    echo.device.config_changed()
    assert echo.interrupts == before and echo.get("InterruptStatus") == 0


def test_queues_are_left_alone_after_a_reset(echo):
    """virtio 1.3, 2.4.1: nothing is taken, and what was in flight does not land, even on the next driver's ring."""
    echo.bring_up()
    echo.send(1, [b"one"], [4])
    echo.send(1, [b"two"], [4])
    one, two = echo.device.held
    echo.put("Status", 0)
    echo.rings[0].add(echo.heap, [b"late"], [4])
    before = echo.memory.read(0, RAM)
    echo.kick()
    echo.device.serve_unless_broken(0)
    echo.device.queues[1].push(one, 4)
    assert echo.memory.read(0, RAM) == before
    echo.bring_up()
    echo.device.queues[1].push(two, 4)
    assert echo.rings[1].used() == []


# --- 2.5, configuration space -----------------------------------------------------------------------------------------


def test_the_configuration_can_be_read_before_features_ok(echo):
    """virtio 1.3, 2.5.2: in every state before it."""
    for status in (0, 1, 3):
        echo.put("Status", status)
        assert bytes(echo.config(at, 1) for at in range(len(CONFIG))) == CONFIG


CONDITIONAL = {
    "block, several queues": {12: 4, 20: 4, 24: 1, 34: 2, 36: 4, 48: 4},  # SEG_MAX, BLK_SIZE, TOPOLOGY, ...
    "net with offloads and MTU": {0: 2, 6: 2, 10: 2},  # MAC, STATUS, MTU
    "console": {0: 2, 2: 2, 4: 4},  # SIZE, MULTIPORT
}


@pytest.mark.parametrize("name", CONDITIONAL)
def test_fields_that_depend_on_a_feature_can_be_read_before_it_is_accepted(drivers, name):
    """virtio 1.3, 2.5.2: as long as the feature is offered; they are the same as with it."""
    driver = drivers(DEVICES[name]())

    def fields():
        return {at: driver.config(at, size) for at, size in CONDITIONAL[name].items()}

    before = fields()
    assert all(before.values())
    driver.bring_up()
    assert fields() == before


# --- 2.7, split virtqueues --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("cuts", [(24,), (1, 23), (7, 8, 9), (23, 1), (0, 24, 0)])
def test_the_arrangement_of_descriptors_means_nothing(echo, cuts, indirect):
    """virtio 1.3, 2.7.4.1"""
    echo.bring_up()
    text, parts = b"what is cut into buffers", []
    for cut in cuts:
        parts.append(text[sum(map(len, parts)) :][:cut])
    for room in cuts, (5, 19), (24,):
        assert echo.request(0, parts, room, indirect) == (24, text)


def written_to(driver, work):
    """The gpas of bytes that `work()` changes, where no ring's used ring lies."""
    before = driver.memory.read(0, RAM)
    work()
    after = driver.memory.read(0, RAM)
    used = {gpa for ring in driver.rings for gpa in range(ring.device, ring.end)}
    return {gpa for gpa in range(RAM) if before[gpa] != after[gpa]} - used if before != after else set()


@pytest.mark.parametrize("indirect", [False, True])
def test_readable_buffers_are_not_written_to(echo, drivers, indirect):
    """virtio 1.3, 2.7.5.1: nor anything else but the writable ones, whatever is in them."""
    echo.bring_up()
    head = echo.rings[0].add(echo.heap, [b"readable", b"too"], [3, 30], indirect)
    room = {gpa + at for gpa, length in echo.rings[0].chains[head][1] for at in range(length)}
    assert written_to(echo, echo.kick) <= room
    block = drivers(DEVICES["block"]()).bring_up()
    for kind in (spec.BLK_T_IN, spec.BLK_T_GET_ID, 99):  # with data that such a request does not have
        head = block.rings[0].add(block.heap, [pack("<IIQ", kind, 0, 0), bytes(512)], [1], indirect)
        [(status, _)] = block.rings[0].chains[head][1]
        assert written_to(block, block.kick) == {status}
        block.rings[0].used()


@pytest.mark.parametrize("indirect", [False, True])
def test_descriptors_are_not_written_to(echo, indirect):
    """virtio 1.3, 2.7.5.1: not in an indirect table either."""
    echo.bring_up()
    ring = echo.rings[0]
    tables = [(ring.descriptors, 16 * ring.size), (0x20000, 16 * 16)]
    before = None
    for _ in range(20):
        head = ring.add(echo.heap, [b"a", b"bc"], [1, 2], indirect)
        before = [echo.memory.read(*table) for table in tables]
        echo.kick()
        assert ring.used() == [(head, 3)]
        assert [echo.memory.read(*table) for table in tables] == before


def entry(gpa, length, flags=0, following=0):
    return pack("<QIHH", gpa, length, flags, following)


@pytest.mark.parametrize("flag", [0, WRITE])
def test_the_write_flag_of_an_indirect_descriptor_is_ignored(echo, flag):
    """virtio 1.3, 2.7.5.3.2"""
    echo.bring_up()
    echo.memory.write(0x40000, b"good")
    echo.memory.write(0x20000, entry(0x40000, 4, NEXT, 1) + entry(0x41000, 4, WRITE))
    echo.rings[0].descriptor(0, 0x20000, 32, INDIRECT | flag)
    echo.rings[0].make_available(0)
    echo.kick()
    assert echo.rings[0].used() == [(0, 4)] and echo.memory.read(0x41000, 4) == b"good"


@pytest.mark.parametrize("ordinary", [0, 1, 2, 14])
def test_an_indirect_descriptor_may_come_after_ordinary_ones(echo, ordinary):
    """virtio 1.3, 2.7.5.3.2: after none or more of them."""
    echo.bring_up()
    ring = echo.rings[0]
    for index in range(ordinary):
        echo.memory.write(0x40000 + index, b"%c" % (97 + index))
        ring.descriptor(index, 0x40000 + index, 1, NEXT, index + 1)
    ring.descriptor(ordinary, 0x20000, 32, INDIRECT)
    echo.memory.write(0x20000, entry(0x42000, 1, NEXT, 1) + entry(0x41000, 15, WRITE))
    echo.memory.write(0x42000, b"!")
    ring.make_available(0)
    echo.kick()
    text = b"abcdefghijklmn"[:ordinary] + b"!"
    assert ring.used() == [(0, len(text))] and echo.memory.read(0x41000, len(text)) == text


NO_EVENTS = [spec.F_RING_EVENT_IDX]


def interrupts(driver, count=1):
    """How many there are for `count` chains that are made available together."""
    before = driver.interrupts
    for _ in range(count):
        driver.rings[0].add(driver.heap, [b"x"])
    driver.kick()
    assert len(driver.rings[0].used()) == count
    return driver.interrupts - before


@pytest.mark.parametrize("event", [0, 1, 5, 0x8000, 0xFFFF])
def test_used_event_is_ignored_without_event_idx(echo, event):
    """virtio 1.3, 2.7.7.2"""
    echo.bring_up(without=NO_EVENTS)
    echo.rings[0].set_used_event(event)
    assert [interrupts(echo) for _ in range(8)] == [1] * 8
    echo.rings[0].set_flags(spec.AVAIL_F_NO_INTERRUPT)
    assert [interrupts(echo) for _ in range(8)] == [0] * 8


def test_with_flags_0_the_driver_is_notified(echo):
    """virtio 1.3, 2.7.7.2: without EVENT_IDX, whenever something was used; again once the flag is 0 again."""
    echo.bring_up(without=NO_EVENTS)
    for count in (1, 1, 2, 16):
        assert interrupts(echo, count) == 1
    echo.rings[0].set_flags(spec.AVAIL_F_NO_INTERRUPT)
    interrupts(echo)
    echo.rings[0].set_flags(0)
    assert interrupts(echo) == 1


@pytest.mark.parametrize("flags", [0, 1])
def test_flags_are_ignored_with_event_idx(echo, flags):
    """virtio 1.3, 2.7.7.2: bit 0 of them."""
    echo.bring_up()
    echo.rings[0].set_flags(flags)
    for index in range(6):
        echo.rings[0].set_used_event(index)
        assert interrupts(echo) == 1
    assert interrupts(echo) == 0


def test_the_driver_is_notified_of_the_index_that_it_names(echo):
    """virtio 1.3, 2.7.7.2: with EVENT_IDX, wherever it lies in a batch, and where the index wraps."""
    echo.bring_up()
    echo.rings[0].set_used_event(0)
    assert [interrupts(echo) for _ in range(3)] == [1, 0, 0]
    for at in range(5):
        echo.rings[0].set_used_event((echo.rings[0].used_index + at) & 0xFFFF)
        assert interrupts(echo, 5) == 1
    while echo.rings[0].used_index < 65520:
        echo.rings[0].set_used_event((echo.rings[0].used_index + 16) & 0xFFFF)
        assert interrupts(echo, 16 if echo.rings[0].used_index <= 65504 else 4) == 0
    for event in (65535, 0):
        echo.rings[0].set_used_event(event)
        seen = [(echo.rings[0].used_index, interrupts(echo)) for _ in range(18)]
        assert (event, 1) in seen and sum(count for _, count in seen) == 1
        while echo.rings[0].used_index != 65520:
            interrupts(echo, 16 if (65520 - echo.rings[0].used_index) & 0xFFFF >= 16 else 1)


def at_publication(queue, look):
    """What `look(index)` returns each time before `queue`'s used index is stored, while the driver does not see it."""
    found = []
    WatchedRing(queue, lambda at, value: found.append(look(value)) if at == INDEX else None)
    return found


def used_element(ring, index):
    data = ring.memory.read(ring.device + 4 + 8 * ((index - 1) % ring.size), 8)
    return int.from_bytes(data[:4], "little"), int.from_bytes(data[4:], "little")


def test_the_length_is_there_before_the_index(echo):
    """virtio 1.3, 2.7.8.2"""
    echo.bring_up()
    ring = echo.rings[0]
    elements = at_publication(echo.device.queues[0], lambda index: (*used_element(ring, index), ring.used_index))
    heads = [echo.send(0, [b"x" * count], [20]) for count in (3, 7)]
    assert elements == [(heads[0], 3, 0), (heads[1], 7, 1)]


def test_what_is_written_is_there_before_the_index(drivers):
    """virtio 1.3, 2.7.8.2: data and status of a request."""
    driver = drivers(DEVICES["block"]()).bring_up()
    ring = driver.rings[0]
    head = ring.add(driver.heap, [pack("<IIQ", spec.BLK_T_IN, 0, 3)], [512, 1])
    found = at_publication(driver.device.queues[0], lambda index: ring.written(head))
    driver.kick()
    assert found == [driver.device.disk.sector(3) + b"\0"]


def test_the_length_tells_of_no_more_than_was_written(drivers):
    """virtio 1.3, 2.7.8.2: from the first writable byte on; a status behind data that is not there does not count."""
    driver = drivers(DEVICES["block"]()).bring_up()
    header = pack("<IIQ", spec.BLK_T_IN, 0, 3)
    assert driver.request(0, [header], [512, 1])[0] == 513
    driver.device.disk.fails["read"] = errno.EIO
    for room in ([512, 1], [1] * 13 + [500]):
        written, data = driver.request(0, [header], room)
        assert data[-1] == spec.BLK_S_IOERR
        assert written <= len(data) - len(data.lstrip(bytes(set(range(256)) - {0xA5})))


def flags_stored(driver):
    """The values that are stored into the used ring's flags, from now on."""
    found = []
    WatchedRing(driver.device.queues[0], lambda at, value: found.append(value) if at == FLAGS else None)
    return found


def test_used_flags_are_0_or_1_without_event_idx(echo):
    """virtio 1.3, 2.7.10.2"""
    echo.bring_up(without=NO_EVENTS)
    found = flags_stored(echo)
    interrupts(echo, 3)
    assert set(found) == {0, 1} and found[-1] == 0 and not echo.rings[0].no_notify


def test_used_flags_are_0_with_event_idx(echo):
    """virtio 1.3, 2.7.10.2: all the time."""
    echo.bring_up()
    found = flags_stored(echo)
    interrupts(echo, 3)
    assert set(found) <= {0} and not echo.rings[0].no_notify


@pytest.mark.parametrize("without", [[], NO_EVENTS])
def test_spurious_notifications_do_no_harm(echo, without):
    """virtio 1.3, 2.7.10.2: before the first chain, between chains and of what is not there."""
    echo.bring_up(without=without)
    for queue in (0, 0, 1, 2, 0xFFFF, 0xFFFFFFFF):
        echo.kick(queue)
    assert (echo.device.served, echo.interrupts, echo.status) == (0, 0, 15)
    assert echo.request(0, [b"good"], [4]) == (4, b"good")
    before = echo.interrupts
    echo.kick()
    assert (echo.device.served, echo.interrupts, echo.status) == (1, before, 15)
    assert echo.request(0, [b"good"], [4]) == (4, b"good")


# --- 4.2, MMIO --------------------------------------------------------------------------------------------------------


@pytest.mark.transport("mmio")
@each_device
def test_the_magic_value(drivers, name):
    """virtio 1.3, 4.2.2.1"""
    assert drivers(DEVICES[name]()).get("MagicValue") == 0x74726976


@pytest.mark.transport("mmio")
@each_device
def test_the_version(drivers, name):
    """virtio 1.3, 4.2.2.1"""
    assert drivers(DEVICES[name]()).get("Version") == 2


@pytest.mark.transport("mmio")
def test_an_event_is_shown_when_its_interrupt_comes(echo):
    """virtio 1.3, 4.2.2.1: from the moment when it takes place."""
    shown = []
    echo.transport._interrupt = lambda: shown.append(echo.transport.pending)
    echo.bring_up()
    echo.send(0, [b"x"])
    echo.acknowledge()
    echo.device.config_changed()
    assert shown == [USED, CHANGED]


@pytest.mark.transport("mmio")
def test_an_event_is_shown_until_it_is_acknowledged(echo):
    """virtio 1.3, 4.2.2.1: reading it, other events and their acknowledgement leave it alone."""
    echo.bring_up()
    echo.send(0, [b"x"])
    echo.device.config_changed()
    assert [echo.get("InterruptStatus") for _ in range(3)] == [USED | CHANGED] * 3
    echo.put("InterruptACK", CHANGED | 0xF0)
    assert echo.get("InterruptStatus") == USED
    echo.device.config_changed()
    echo.put("InterruptACK", USED)
    assert echo.get("InterruptStatus") == CHANGED
    echo.put("InterruptACK", CHANGED)
    assert echo.get("InterruptStatus") == 0


@pytest.mark.transport("mmio")
def test_only_events_that_took_place_are_shown(echo):
    """virtio 1.3, 4.2.2.1"""
    echo.bring_up()
    assert echo.get("InterruptStatus") == 0
    echo.send(0, [b"x"])
    assert echo.acknowledge() == USED
    echo.device.config_changed()
    assert echo.acknowledge() == CHANGED


@pytest.mark.transport("mmio")
def test_a_reset_clears_interrupt_status(echo):
    """virtio 1.3, 4.2.2.1"""
    echo.bring_up()
    echo.send(0, [b"x"])
    echo.device.config_changed()
    echo.put("Status", 0)
    assert echo.get("InterruptStatus") == 0


@pytest.mark.transport("mmio")
def test_a_reset_clears_queue_ready_of_all_queues(echo):
    """virtio 1.3, 4.2.2.1"""
    echo.bring_up()

    def ready():
        found = []
        for queue in (0, 1):
            echo.put("QueueSel", queue)
            found.append(echo.get("QueueReady"))
        return found

    assert ready() == [1, 1]
    echo.put("Status", 0)
    assert ready() == [0, 0]


@pytest.mark.transport("mmio")
def test_a_configuration_that_changes_has_a_new_generation(echo):
    """virtio 1.3, 4.2.2.1: also before a driver is there to be told."""
    seen = set()
    for number in range(4):
        if number == 2:
            echo.bring_up()
        echo.device.text = bytes([number]) * 12
        echo.device.config_changed()
        seen.add((echo.get("ConfigGeneration"), echo.config(0, 4)))
    assert len(seen) == len({generation for generation, _ in seen}) == 4


@pytest.mark.transport("mmio")
def test_a_queue_that_is_not_ready_is_not_touched(echo):
    """virtio 1.3, 4.2.2.1: neither one that was never enabled nor one taken out of use, whatever was in flight."""
    assert echo.negotiate()
    echo.set_up_queues()
    echo.put("QueueSel", 0)
    echo.put("QueueReady", 0)
    echo.put("Status", 15)
    echo.send(1, [b"held"], [4])
    echo.put("QueueSel", 1)
    echo.put("QueueReady", 0)
    for ring in echo.rings:
        ring.add(echo.heap, [b"x"], [1])
    before = echo.memory.read(0, RAM)
    echo.device.queues[1].push(echo.device.held.pop(), 4)
    echo.kick(0)
    echo.kick(1)
    assert echo.memory.read(0, RAM) == before and echo.get("QueueReady") == 0 and echo.interrupts == 0


@pytest.mark.transport("mmio")
def test_buffers_of_a_queue_that_is_not_ready_are_not_filled(drivers, monkeypatch):
    """virtio 1.3, 4.2.2.1: a request that waited for something when its queue was taken out of use gets nothing."""
    ready = []
    now = time.monotonic()
    monkeypatch.setattr(rng, "time", SimpleNamespace(monotonic=lambda: now))
    driver = drivers(VirtioRng(source=lambda count: bytes(ready[:1]))).bring_up()
    driver.send(0, [], [16])
    driver.put("QueueSel", 0)
    driver.put("QueueReady", 0)
    before = driver.memory.read(0, RAM)
    ready.append(7)
    now = driver.device.next_deadline()
    with driver.device.plane:
        driver.device.guarded(lambda: driver.device.run_due(now))
    assert driver.memory.read(0, RAM) == before and driver.device.next_deadline() is None


# --- 5.1, network device ----------------------------------------------------------------------------------------------


def offer(flags=0, gso_type=0, hdr_len=0, gso_size=0, csum_start=0, csum_offset=0):
    return pack("<BBHHHHH", flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, 0)


SEGMENTS = (spec.NET_F_GUEST_TSO4, spec.NET_F_GUEST_TSO6, spec.NET_F_GUEST_ECN)


def test_without_offloads_there_are_no_segments(drivers):
    """virtio 1.3, 5.1.6.4.1: gso_type is NONE then."""
    driver = drivers(DEVICES["net with offloads and MTU"]()).bring_up(without=SEGMENTS)
    for kind in (1, 3, 4, 5, 0x81, 0x84):
        assert arrive(driver, offer(1, kind, 54, 1000, 34, 16) + frame()) is None
    header, data = arrive(driver, offer(1, 0, 0, 0, 34, 16) + frame())
    assert header[1] == 0 and data == frame()


def test_rsc_info_is_not_passed_on(drivers):
    """virtio 1.3, 5.1.6.4.1: not set without RSC_EXT, whatever the back-end says."""
    driver = drivers(DEVICES["net with offloads and MTU"]()).bring_up()
    for flags in (4, 4 | 1):
        header, _ = arrive(driver, offer(flags, 0, 0, 0, 34, 16) + frame())
        assert header[0] == flags & 1


def command(kind, number, data):
    return [bytes([kind, number]), data]


def test_the_tables_are_updated_before_their_command_is_used(drivers):
    """virtio 1.3, 5.1.6.5.2.1: when the driver sees that the command is done, frames to the addresses come through."""
    driver = drivers(DEVICES["net"]()).bring_up()
    driver.request(CONTROL, command(spec.NET_CTRL_RX, spec.NET_CTRL_RX_PROMISC, b"\0"), [1])
    accepts = driver.device._filter.accepts
    assert not accepts(OTHER)
    found = at_publication(driver.device.queues[CONTROL], lambda index: accepts(OTHER))
    tables = pack("<I", 1) + OTHER + pack("<I", 0)
    driver.request(CONTROL, command(spec.NET_CTRL_MAC, spec.NET_CTRL_MAC_TABLE_SET, tables), [1])
    assert found == [True]
    assert arrive(driver, frame(OTHER)) is not None


def test_the_mac_is_updated_before_its_command_is_used(drivers):
    """virtio 1.3, 5.1.6.5.2.1: in the configuration space."""
    driver = drivers(DEVICES["net with offloads and MTU"]()).bring_up()
    found = at_publication(driver.device.queues[CONTROL], lambda index: driver.device.config()[:6])
    driver.request(CONTROL, command(spec.NET_CTRL_MAC, spec.NET_CTRL_MAC_ADDR_SET, OTHER), [1])
    assert found == [OTHER] and driver.config(0, 4) == int.from_bytes(OTHER[:4], "little")


def test_all_vlans_are_accepted(drivers):
    """virtio 1.3, 5.1.6.5.3.1: without CTRL_VLAN there is no filter for them."""
    driver = drivers(DEVICES["net"]()).bring_up()
    for promiscuous in (b"\1", b"\0"):
        driver.request(CONTROL, command(spec.NET_CTRL_RX, spec.NET_CTRL_RX_PROMISC, promiscuous), [1])
        for tag in (0, 1, 100, 0xFFF, 0xEFFF):
            tagged = frame(kind=b"\x81\x00" + tag.to_bytes(2, "big") + b"\x08\x00")
            assert arrive(driver, tagged)[1] == tagged


# --- 5.2, block device ------------------------------------------------------------------------------------------------


def test_a_flush_is_done_before_its_completion(drivers):
    """virtio 1.3, 5.2.6.2: writes completed before are stable when the driver sees the flush completed (case 3)."""
    driver = drivers(DEVICES["block"]()).bring_up()
    disk = driver.device.disk
    done = at_publication(driver.device.queues[0], lambda index: [name for name, *_ in disk.calls])
    for request in ([pack("<IIQ", spec.BLK_T_OUT, 0, 0), bytes(512)], [pack("<IIQ", spec.BLK_T_FLUSH, 0, 0)]):
        assert driver.request(0, request, [1]) == (1, b"\0")
    assert done == [["write"], ["write", "flush"]]


@pytest.mark.parametrize("name", [name for name in DEVICES if name.startswith("block")])
def test_lifetime_metrics_are_not_offered(drivers, name):
    """virtio 1.3, 5.2.6.2: a file has none."""
    assert not drivers(DEVICES[name]()).offered >> 15 & 1


# --- 5.3, console device ----------------------------------------------------------------------------------------------


def test_no_port_is_removed_that_was_not_added(drivers):
    """virtio 1.3, 5.3.6.2.1: whatever the host does, and whenever."""
    ports = [Port(), Port("a"), Port("b")]
    driver = drivers(VirtioConsole(ports)).bring_up()
    ring, added = driver.rings[2], set()

    def hear():
        for head, written in ring.used():
            assert written >= 8
            number, event, _ = unpack("<IHH", ring.written(head)[:8])
            assert event != spec.CONSOLE_DEVICE_REMOVE or number in added
            if event == spec.CONSOLE_DEVICE_ADD:
                added.add(number)

    def host():
        for port in ports:
            port.connect(False)
            port.connect(True)
        driver.device.resize(100, 30)

    for step in range(6):
        if step == 1:
            driver.request(3, [pack("<IHH", 0, spec.CONSOLE_DEVICE_READY, 1)])
        if 2 <= step < 5:
            driver.request(3, [pack("<IHH", step - 2, spec.CONSOLE_PORT_READY, 1)])
        host()
        driver.send(2, [], [64])
        driver.send(2, [], [64])
        hear()
    assert added == {0, 1, 2}


# --- 6, reserved feature bits -----------------------------------------------------------------------------------------


@each_device
def test_version_1_is_offered(drivers, name):
    """virtio 1.3, 6.2"""
    assert drivers(DEVICES[name]()).offered >> 32 & 1


@each_device
def test_sr_iov_is_not_offered(drivers, name):
    """virtio 1.3, 6.2: it is for PCI devices."""
    assert not drivers(DEVICES[name]()).offered >> 37 & 1


# --- The queue engine's own measure -----------------------------------------------------------------------------------


def test_the_used_ring_can_be_watched(echo):
    """What the tests above stand on: every store goes through the watched ring."""
    echo.bring_up(without=NO_EVENTS)
    stores = []
    WatchedRing(echo.device.queues[0], lambda at, value: stores.append(at))
    assert isinstance(echo.device.queues[0], Virtqueue)
    interrupts(echo)
    assert stores == [FLAGS, INDEX, FLAGS]
