"""The split virtqueue and the status machine, driven by the tests' own driver."""

import pytest

from pyvmm.virtio import spec
from pyvmm.virtio.device import VirtioDevice
from tests.support.virtiodriver import INDIRECT, NEXT, RAM, WRITE, Driver

pytestmark = pytest.mark.transport("mmio", "pci", "pci-pin")


class Echo(VirtioDevice):
    """Copies what is readable to what is writable. Queue 1 holds what it gets until told otherwise."""

    device_id = spec.ID_RNG
    queue_sizes = (16, 16)

    def __init__(self):
        super().__init__("echo")
        self.held = []
        self.served = 0
        self.dropped = 0

    def serve(self, queue):
        for chain in queue.chains():
            self.served += 1
            if queue.index == 1:
                self.held.append(chain)
                continue
            self.complete(queue, chain, chain.write(chain.read(0, chain.readable_length)))

    def discard(self):
        self.dropped += len(self.held)
        self.held = []


@pytest.fixture
def echo():
    driver = Driver(Echo())
    yield driver
    driver.close()


def works(driver):
    """A good request gets its answer."""
    assert driver.request(0, [b"good"], [4]) == (4, b"good")


def recovers(driver):
    """The device asks for a reset, tells so, serves nothing until then, and works after it."""
    assert driver.needs_reset and driver.get("InterruptStatus") & spec.INTERRUPT_CONFIG_CHANGE
    served = driver.device.served
    driver.kick()
    assert driver.device.served == served
    driver.bring_up()
    works(driver)


# --- Good chains -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indirect", [False, True])
def test_a_chain_is_served_whatever_its_descriptors(echo, indirect):
    echo.bring_up()
    for cut in (1, 2, 5, 11):
        text = b"hello world"
        parts = [text[at : at + cut] for at in range(0, len(text), cut)]
        assert echo.request(0, parts, [3] * 4, indirect) == (11, text + b"\xa5")


def test_a_chain_as_long_as_the_queue_is_legal(echo):
    echo.bring_up(size=8)
    assert echo.request(0, [b"a", b"b", b"c", b"d"], [1, 1, 1, 1]) == (4, b"abcd")


def test_ordinary_descriptors_may_come_before_an_indirect_one(echo):
    echo.bring_up()
    ring, heap = echo.rings[0], echo.heap
    table = heap.table(1)
    answer = heap.take(4)
    question = heap.take(4)
    echo.memory.write(question, b"word")
    echo.memory.write(table, (answer).to_bytes(8, "little") + (4).to_bytes(4, "little") + WRITE.to_bytes(4, "little"))
    ring.descriptor(0, question, 4, NEXT, 1)
    ring.descriptor(1, table, 16, INDIRECT | WRITE)
    ring.make_available(0)
    echo.kick()
    assert ring.used() == [(0, 4)] and echo.memory.read(answer, 4) == b"word"


def test_indices_wrap_at_65536(echo):
    echo.bring_up(size=2)
    for number in range(70_000 // 2):
        echo.rings[0].add(echo.heap, [b"x"], publish=False)
        echo.rings[0].add(echo.heap, [b"y"])
        echo.kick()
        assert len(echo.rings[0].used()) == 2, number
    works(echo)


def test_buffers_of_no_length_are_passed_over(echo):
    echo.bring_up()
    assert echo.request(0, [b"", b"ab", b""], [0, 2]) == (2, b"ab")


# --- Bad rings -------------------------------------------------------------------------------------------------------


def bad_chain(driver, *descriptors):
    """Make available what begins with the first of `descriptors`, at 0, 1, ..."""
    ring = driver.rings[0]
    for index, descriptor in enumerate(descriptors):
        ring.descriptor(index, *descriptor)
    ring.make_available(0)
    driver.kick()


CHAINS = {
    "loop": [(0x40000, 1, NEXT, 1), (0x40000, 1, NEXT, 0)],
    "itself": [(0x40000, 1, NEXT, 0)],
    "next beyond the table": [(0x40000, 1, NEXT, 16)],
    "next far beyond": [(0x40000, 1, NEXT, 0xFFFF)],
    "beyond RAM": [(RAM, 1)],
    "over RAM's end": [(RAM - 1, 2)],
    "wrapping": [(0xFFFFFFFFFFFFFFFF, 2)],
    "huge": [(0, 0xFFFFFFFF)],
    "writable beyond RAM": [(RAM - 4, 8, WRITE)],
    "readable after writable": [(0x40000, 4, WRITE | NEXT, 1), (0x40000, 4)],
    "nested indirect": [(0x20000, 16, INDIRECT)],
    "indirect with next": [(0x20000, 16, INDIRECT | NEXT, 1), (0x40000, 1)],
    "indirect of 8 bytes": [(0x20000, 8, INDIRECT)],
    "indirect of 24 bytes": [(0x20000, 24, INDIRECT)],
    "indirect of 0 bytes": [(0x20000, 0, INDIRECT)],
    "indirect too long": [(0x20000, 17 * 16, INDIRECT)],
    "indirect beyond RAM": [(RAM - 8, 16, INDIRECT)],
    "indirect loop": [(0x20100, 32, INDIRECT)],
    "indirect next beyond": [(0x20200, 16, INDIRECT)],
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_bad_chain_breaks_the_device_until_reset(echo, name):
    echo.bring_up()
    entry = lambda gpa, length, flags, following: (  # noqa: E731
        gpa.to_bytes(8, "little")
        + length.to_bytes(4, "little")
        + flags.to_bytes(2, "little")
        + following.to_bytes(2, "little")
    )
    echo.memory.write(0x20000, entry(0x20000, 16, INDIRECT, 0))
    echo.memory.write(0x20100, entry(0x40000, 1, NEXT, 1) + entry(0x40000, 1, NEXT, 0))
    echo.memory.write(0x20200, entry(0x40000, 1, NEXT, 1))
    bad_chain(echo, *CHAINS[name])
    assert not echo.rings[0].used()
    recovers(echo)


def test_a_chain_of_more_than_4_gib_is_refused(echo):
    echo.memory.close()
    device = Echo()
    driver = Driver(device, ram=3 << 30)
    try:
        driver.bring_up()
        gib = 1 << 30
        bad_chain(driver, *[(0, gib, WRITE | NEXT, index + 1) for index in range(4)], (0, 1, WRITE))
        recovers(driver)
    finally:
        driver.close()
        echo.memory = driver.memory


def test_indirect_descriptors_must_have_been_negotiated(echo):
    echo.bring_up(without=[spec.F_RING_INDIRECT_DESC])
    echo.send(0, [b"x"], indirect=True)
    recovers(echo)


@pytest.mark.parametrize("jump", [17, 100, 0x8000, 0xFFFF])
def test_an_available_index_that_jumps_breaks_the_device(echo, jump):
    echo.bring_up()
    works(echo)
    ring = echo.rings[0]
    echo.memory.write_u16(ring.driver + 2, (ring.avail + jump) & 0xFFFF)
    echo.kick()
    recovers(echo)


def test_a_head_beyond_the_table_breaks_the_device(echo):
    echo.bring_up()
    echo.rings[0].make_available(16)
    echo.kick()
    recovers(echo)


def test_the_same_head_twice_breaks_the_device(echo):
    echo.bring_up()
    ring = echo.rings[1]
    ring.descriptor(0, 0x40000, 1)
    ring.make_available(0)
    ring.make_available(0)
    echo.kick(1)
    assert echo.device.served == 1
    recovers(echo)


# --- Queue set-up ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 3, 17, 32, 0x8000, 0xFFFFFFFF])
def test_a_bad_size_is_refused(echo, size):
    assert echo.negotiate()
    echo.put("QueueSel", 0)
    echo.put("QueueSize", size)
    echo.put("QueueReady", 1)
    assert echo.get("QueueReady") == 0 and echo.needs_reset
    echo.bring_up()
    works(echo)


RINGS = {
    "misaligned table": (0x1008, 0x2000, 0x3000),
    "misaligned driver area": (0x1000, 0x2001, 0x3000),
    "misaligned device area": (0x1000, 0x2000, 0x3002),
    "table outside": (RAM, 0x2000, 0x3000),
    "table over the end": (RAM - 16, 0x2000, 0x3000),
    "driver area outside": (0x1000, RAM - 2, 0x3000),
    "device area outside": (0x1000, 0x2000, 1 << 40),
    "wrapping": (0x1000, 0x2000, (1 << 64) - 4),
    "overlapping": (0x1000, 0x1010, 0x3000),
    "the same": (0x1000, 0x2000, 0x2000),
}


@pytest.mark.parametrize("name", RINGS)
def test_rings_must_lie_apart_aligned_and_in_ram(echo, name):
    assert echo.negotiate()
    for part, gpa in zip(("Desc", "Driver", "Device"), RINGS[name], strict=True):
        echo.put(f"Queue{part}Low", gpa & 0xFFFFFFFF)
        echo.put(f"Queue{part}High", gpa >> 32)
    echo.put("QueueReady", 1)
    assert echo.get("QueueReady") == 0 and echo.needs_reset
    echo.bring_up()
    works(echo)


def test_a_queue_is_frozen_once_in_use(echo):
    """Its size cannot be changed after activation (CVE-2026-5747 of another VMM)."""
    echo.bring_up()
    echo.put("QueueSel", 0)
    for register in ("QueueSize", "QueueDescLow", "QueueDescHigh", "QueueDriverLow", "QueueDeviceLow"):
        echo.put(register, 4)
    queue = echo.device.queues[0]
    assert queue.size == 16 and queue.descriptors == echo.rings[0].descriptors
    works(echo)


def test_a_queue_is_not_enabled_before_features_are_ok(echo):
    echo.put("Status", 1)
    echo.put("Status", 3)
    echo.put("QueueReady", 1)
    assert echo.get("QueueReady") == 0


# --- Notifications ---------------------------------------------------------------------------------------------------


def test_without_event_index_the_flag_decides(echo):
    echo.bring_up(without=[spec.F_RING_EVENT_IDX])
    echo.rings[0].set_used_event(40)
    works(echo)
    assert echo.interrupts == 1
    echo.rings[0].set_flags(spec.AVAIL_F_NO_INTERRUPT)
    works(echo)
    assert echo.interrupts == 1
    assert not echo.rings[0].no_notify


def test_with_event_index_the_index_decides_and_the_flag_does_not(echo):
    echo.bring_up()
    ring = echo.rings[0]
    ring.set_flags(spec.AVAIL_F_NO_INTERRUPT)
    ring.set_used_event(2)
    works(echo)
    works(echo)
    assert echo.interrupts == 0
    works(echo)
    assert echo.interrupts == 1 and ring.avail_event == 3
    works(echo)
    assert echo.interrupts == 1 and not ring.no_notify


def test_a_batch_that_passes_the_event_interrupts_once(echo):
    echo.bring_up()
    ring = echo.rings[0]
    ring.set_used_event(3)
    for _ in range(6):
        ring.add(echo.heap, [b"x"])
    echo.kick()
    assert len(ring.used()) == 6 and echo.interrupts == 1


# --- Status ----------------------------------------------------------------------------------------------------------


def test_the_status_goes_its_way_and_no_other(echo):
    ways = [0, 1, 3, 11, 15]
    for step, reached in enumerate(ways):
        for wrong in (value for value in range(1, 64) if value != reached and value not in ways[step + 1 : step + 2]):
            if reached == 0 and wrong == 3:
                continue  # both at once harms nobody
            echo.put("Status", 0)
            for value in ways[1 : step + 1]:
                if value == 11:
                    echo.accept(echo.offered)
                echo.put("Status", value)
            echo.put("Status", wrong)
            assert echo.status == reached, wrong


@pytest.mark.parametrize(
    "features", [0, 1 << spec.F_VERSION_1 | 1 << spec.F_ACCESS_PLATFORM, 1 << spec.F_VERSION_1 | 1]
)
def test_features_that_cannot_be_are_not_ok(echo, features):
    assert not echo.negotiate(features)
    assert echo.status == 3
    assert echo.negotiate()


def test_features_are_frozen_behind_features_ok(echo):
    echo.negotiate(1 << spec.F_VERSION_1)
    echo.accept(echo.offered)
    assert echo.device.features == 1 << spec.F_VERSION_1


def test_nothing_is_served_before_driver_ok_and_what_waits_is_served_then(echo):
    echo.negotiate()
    echo.set_up_queues()
    echo.rings[0].add(echo.heap, [b"x"])
    echo.kick()
    assert echo.device.served == 0
    echo.put("Status", 15)
    assert echo.device.served == 1 and echo.rings[0].used()


def test_a_failed_driver_is_not_served_until_it_resets(echo):
    echo.bring_up()
    echo.put("Status", 15 | spec.STATUS_FAILED)
    echo.send(0, [b"x"])
    assert echo.status == 15 | spec.STATUS_FAILED and not echo.rings[0].used()
    echo.bring_up()
    works(echo)


def test_a_notification_of_what_is_not_there_means_nothing(echo):
    echo.kick()
    echo.bring_up()
    for queue in (2, 3, 0xFFFF, 0x10000, 0xFFFFFFFF):
        echo.kick(queue)
    works(echo)
    echo.put("Status", 0)
    echo.kick()
    assert echo.status == 0


# --- Reset -----------------------------------------------------------------------------------------------------------


def test_no_completion_lands_after_a_reset(echo):
    """CVE-2026-45782 of another VMM."""
    echo.bring_up()
    head = echo.send(1, [], [4])
    ring = echo.rings[1]
    [chain] = echo.device.held
    queue = echo.device.queues[1]
    echo.put("Status", 0)
    assert echo.device.dropped == 1 and echo.get("InterruptStatus") == 0
    queue.push(chain, 4)
    assert not ring.used()
    echo.bring_up()
    queue.push(chain, 4)
    assert not echo.rings[1].used() and ring.written(head) == b"\xa5" * 4
    works(echo)


def test_a_reset_clears_everything(echo):
    echo.bring_up()
    works(echo)
    echo.put("Status", 0)
    assert echo.status == 0 and echo.get("InterruptStatus") == 0 and echo.device.features == 0
    for queue in range(2):
        echo.put("QueueSel", queue)
        assert echo.get("QueueReady") == 0
