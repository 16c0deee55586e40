"""The entropy device: what a request gets, how fast, and what a bad driver or a bad source comes to."""

from __future__ import annotations

import threading
import time

import pytest

from pyvmm.errors import UsageError
from pyvmm.virtio import rng, spec
from pyvmm.virtio.faults import FaultPlan
from pyvmm.virtio.plane import DataPlane
from pyvmm.virtio.rng import LARGEST, RETRY, VirtioRng
from tests.support.clock import Clock as Stopped
from tests.support.virtiodriver import NEXT, WRITE, Driver


class Clock(Stopped):
    def sleep(self, driver, seconds):
        """Let time pass as a data plane does, which wakes at each deadline."""
        end = self.now + seconds
        device = driver.device
        while (due := device.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            with device.plane:
                device.guarded(lambda: device.run_due(self.now))
        self.now = end


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(rng, "time", clock)
    return clock


class Source:
    """Gives bytes that are all `value`, `most` at a time; raises `error` if there is one."""

    def __init__(self, most=1 << 30, value=7):
        self.most, self.value, self.error, self.asked = most, value, None, []

    def __call__(self, count):
        self.asked.append(count)
        if self.error is not None:
            raise self.error
        return bytes([self.value]) * min(count, self.most)


def made(**settings):
    return Driver(VirtioRng(**settings)).bring_up()


def works(driver):
    assert driver.request(0, [], [16]) == (16, bytes([7]) * 16)


def test_a_request_is_filled_with_random_bytes():
    driver = made()
    answers = {driver.request(0, [], [16, 16])[1] for _ in range(20)}
    assert len(answers) == 20 and all(len(answer) == 32 for answer in answers)
    driver.close()


def test_it_is_an_entropy_device_without_features_and_configuration():
    """virtio 1.3, 5.4.1 to 5.4.4"""
    driver = Driver(VirtioRng())
    assert driver.get("DeviceID") == 4 and driver.device.device_features() == 0
    assert [driver.config(offset, 4) for offset in (0, 4, 0xEFC)] == [0, 0, 0]
    assert len(driver.device.queues) == 1
    driver.close()


def test_at_least_one_byte_is_placed(clock):
    """virtio 1.3, 5.4.6.2: the device MUST place one or more random bytes into the buffer."""
    source = Source(most=1)
    driver = made(source=source)
    assert driver.request(0, [], [16]) == (1, b"\7" + b"\xa5" * 15)
    source.most = 0
    head = driver.send(0, [], [16])
    assert driver.rings[0].used() == [], "an empty answer is none"
    source.most = 1 << 30
    clock.sleep(driver, RETRY)
    assert driver.rings[0].used() == [(head, 16)]
    works(driver)
    driver.close()


def test_a_huge_request_gets_a_bounded_part():
    """One descriptor of 512 KiB, sixteen times over: 8 MiB in a request."""
    source = Source()
    driver = made(source=source)
    ring = driver.rings[0]
    head = ring.add_buffers([(0x40000, 512 << 10, WRITE)] * 16)
    driver.kick()
    assert ring.used() == [(head, LARGEST)] and source.asked == [LARGEST]
    assert driver.memory.read(0x40000, LARGEST) == b"\7" * LARGEST
    works(driver)
    driver.close()


def test_a_request_without_room_is_given_back_empty():
    """virtio 1.3, 5.4.6.1 forbids drivers to place readable buffers; one that does so all the same gets them back."""
    source = Source()
    driver = made(source=source)
    assert driver.request(0, [b"readable"], []) == (0, b"")
    assert source.asked == []
    assert driver.request(0, [b"readable"], [4]) == (4, b"\7" * 4)
    driver.close()


def test_a_bad_chain_breaks_the_device_until_reset():
    driver = made(source=Source())
    driver.rings[0].descriptor(0, 0x40000, 4, WRITE | NEXT, 0)
    driver.rings[0].make_available(0)
    driver.kick()
    assert driver.needs_reset
    driver.bring_up()
    works(driver)
    driver.close()


# --- Rate ------------------------------------------------------------------------------------------------------------


def test_the_rate_is_kept(clock):
    driver = made(source=Source(), rate=1000)
    ring, got = driver.rings[0], 0
    for _ in range(100):  # ten seconds of a driver that always asks
        while len(ring.free) > 8:
            driver.send(0, [], [4096])
        clock.sleep(driver, 0.1)
        got += sum(written for _, written in ring.used())
    assert 10_000 <= got <= 11_000, "the first second's worth comes at once"
    driver.close()


def test_a_limited_device_answers_in_portions_and_not_byte_by_byte(clock):
    source = Source()
    driver = made(source=source, rate=100)
    driver.request(0, [], [100])
    head = driver.send(0, [], [64])
    assert driver.rings[0].used() == [], "nothing is left"
    clock.sleep(driver, 0.09)
    assert driver.rings[0].used() == []
    clock.sleep(driver, 0.02)
    assert driver.rings[0].used() == [(head, 10)]
    driver.close()


def test_notifications_while_nothing_is_left_neither_hurry_nor_spin(clock):
    source = Source()
    driver = made(source=source, rate=10)
    driver.request(0, [], [10])
    for _ in range(5):
        driver.send(0, [], [4])
    asked = len(source.asked)
    for _ in range(100):
        driver.kick()
    assert driver.rings[0].used() == [] and len(source.asked) == asked
    assert driver.device.queues[0].in_flight == 1, "the others are left in the ring"
    clock.sleep(driver, 10)
    assert [written for _, written in driver.rings[0].used()] == [1] * 5
    driver.close()


def test_a_low_rate_gives_single_bytes(clock):
    driver = made(source=Source(), rate=1)
    assert driver.request(0, [], [16])[0] == 1
    head = driver.send(0, [], [16])
    clock.sleep(driver, 0.9)
    assert driver.rings[0].used() == []
    clock.sleep(driver, 0.2)
    assert driver.rings[0].used() == [(head, 1)]
    driver.close()


def test_a_rate_below_one_byte_is_refused():
    with pytest.raises(UsageError, match="at 0 bytes a second"):
        VirtioRng(rate=0)


def test_a_reset_drops_the_request_that_waits(clock):
    driver = made(source=Source(), rate=10)
    driver.request(0, [], [10])
    driver.send(0, [], [10])
    driver.put("Status", 0)
    used = driver.rings[0].used_index
    clock.sleep(driver, 5)
    assert driver.rings[0].used_index == used and driver.device.next_deadline() is None
    driver.bring_up()
    assert driver.request(0, [], [4]) == (4, b"\7" * 4)
    driver.close()


@pytest.mark.transport("mmio")  # the only one with a way to do that
def test_nothing_is_written_for_a_queue_that_was_taken_out_of_use(clock):
    driver = made(source=Source(), rate=10)
    driver.request(0, [], [10])
    head = driver.send(0, [], [10])
    driver.put("QueueSel", 0)
    driver.put("QueueReady", 0)
    clock.sleep(driver, 5)
    assert driver.rings[0].written(head) == b"\xa5" * 10 and driver.device.next_deadline() is None
    driver.bring_up()
    assert driver.request(0, [], [4]) == (4, b"\7" * 4)
    driver.close()


# --- Sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError("no entropy"), ValueError("a bug"), None])
def test_a_source_that_fails_is_asked_again(clock, error):
    source = Source()
    driver = made(source=source)
    source.error, source.most = error, 0
    head = driver.send(0, [], [16])
    assert driver.rings[0].used() == [] and not driver.needs_reset
    clock.sleep(driver, 1)
    assert 5 <= len(source.asked) <= 1 / RETRY + 1, "now and then, not all the time"
    source.error, source.most = None, 1 << 30
    clock.sleep(driver, RETRY)
    assert driver.rings[0].used() == [(head, 16)]
    assert driver.device.failure == ("" if error is None else f"{type(error).__name__}: {error}")
    works(driver)
    driver.close()


def test_a_source_that_gives_too_much_is_cut():
    driver = made(source=lambda count: bytes(count * 2))
    assert driver.request(0, [], [8]) == (8, bytes(8))
    driver.close()


# --- Faults and the data plane ---------------------------------------------------------------------------------------


def test_faults_on_purpose(clock):
    device = VirtioRng(name="rng0", source=Source())
    device.faults = FaultPlan(["rng0:short=3,nth=1", "rng0:short=0,nth=2", "rng0:error,op=read,nth=3"])
    driver = Driver(device).bring_up()
    assert driver.request(0, [], [16])[0] == 3
    assert driver.request(0, [], [16])[0] == 1, "never nothing"
    head = driver.send(0, [], [16])
    assert driver.rings[0].used() == []
    clock.sleep(driver, RETRY)
    assert driver.rings[0].used() == [(head, 16)]
    works(driver)
    assert [hits for _, hits, _ in device.faults.counts] == [1, 1, 1]
    driver.close()


def test_a_data_plane_serves_a_limited_device():
    driver = Driver(VirtioRng(rate=2000))
    plane = DataPlane(driver.device, driver.transport)
    told = threading.Event()
    driver.on_interrupt = told.set
    plane.start()
    driver.bring_up(without=[spec.F_RING_EVENT_IDX])
    began = time.monotonic()
    for _ in range(6):
        driver.rings[0].add(driver.heap, [], [400])
    driver.kick()
    while driver.rings[0].used_index < 6:
        assert time.monotonic() - began < 20
        time.sleep(0.002)
    got = sum(written for _, written in driver.rings[0].used())
    assert told.is_set() and 2000 <= got <= 2000 * (1 + time.monotonic() - began)
    plane.close()
    driver.close()
