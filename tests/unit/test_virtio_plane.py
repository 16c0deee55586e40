"""The data plane: a thread that serves a device when its doorbells ring, and what stops it."""

import os
import select
import threading
import time

import pytest

from pyvmm.virtio import plane as plane_module
from pyvmm.virtio import spec
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.plane import DataPlane
from tests.support.cli import wait_for
from tests.support.virtiodriver import Driver

pytestmark = pytest.mark.transport("mmio", "pci", "pci-pin")


class Slow(VirtioDevice):
    """Answers a request when its `gate` is open; also hears a pipe and a clock."""

    device_id = spec.ID_RNG
    queue_sizes = (16,)

    def __init__(self):
        super().__init__("slow")
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.hear = -1
        self.heard = b""
        self.due = None
        self.ticks = 0
        self.error_to_raise = None

    def serve(self, queue):
        for chain in queue.chains():
            self.entered.set()
            if self.error_to_raise is not None:
                raise self.error_to_raise
            assert self.gate.wait(10)
            self.complete(queue, chain, chain.write(b"answer"))

    def sources(self):
        return [(self.hear, select.POLLIN)] if self.hear >= 0 else []

    def ready(self, fd, events):
        self.heard += os.read(fd, 100)

    def deadline(self):
        return self.due

    def tick(self, now):
        self.due = None
        self.ticks += 1


@pytest.fixture
def driver():
    driver = Driver(Slow())
    said = []
    driver.said = said
    driver.plane = DataPlane(driver.device, driver.transport, said.append)
    driver.plane.start()
    yield driver
    driver.device.gate.set()
    driver.plane.close()
    driver.device.ring = driver.device.serve_unless_broken
    driver.close()


def answered(driver, count=1):
    found = []

    def enough():
        found.extend(driver.rings[0].used())
        return len(found) >= count

    wait_for(enough, "an answer", 5)
    return found


def test_a_doorbell_has_the_queue_served(driver):
    driver.bring_up()
    for _ in range(3):
        head = driver.send(0, [], [6])
        assert answered(driver) == [(head, 6)] and driver.rings[0].written(head) == b"answer"
    wait_for(lambda: driver.interrupts, "an interrupt", 5)


def test_a_reset_waits_for_the_request_in_hand_and_nothing_lands_after_it(driver):
    driver.bring_up()
    driver.device.gate.clear()
    first = driver.send(0, [], [6])
    driver.send(0, [], [6])
    assert driver.device.entered.wait(5)
    done = threading.Event()

    def reset():
        driver.put("Status", 0)
        done.set()

    thread = threading.Thread(target=reset)
    thread.start()
    assert not done.wait(0.05), "the reset did not wait"
    driver.device.gate.set()
    assert done.wait(5)
    thread.join()
    landed = driver.rings[0].used_index
    time.sleep(0.02)
    assert driver.rings[0].used_index == landed <= 1 and driver.get("InterruptStatus") == 0
    assert first == 0
    driver.bring_up()
    driver.send(0, [], [6])
    answered(driver)


def test_a_pause_waits_for_the_request_in_hand_and_a_resume_forgets_none(driver):
    driver.bring_up()
    driver.device.gate.clear()
    driver.send(0, [], [6])
    assert driver.device.entered.wait(5)
    threading.Timer(0.05, driver.device.gate.set).start()
    driver.plane.pause()
    assert driver.rings[0].used_index == 1
    driver.send(0, [], [6])
    time.sleep(0.02)
    assert driver.rings[0].used_index == 1
    driver.plane.resume()
    answered(driver, 2)


def test_nothing_is_served_in_a_pause_that_came_while_the_server_waited(driver):
    """The thread has heard the doorbell already when the pause begins, and gets `plane` after it."""
    driver.bring_up()
    with driver.device.plane:
        driver.send(0, [], [6])
        time.sleep(0.05)  # for it to come as far as that
        driver.device.paused = True
    driver.plane.pause()
    time.sleep(0.02)
    assert driver.rings[0].used_index == 0
    driver.plane.resume()
    answered(driver, 1)


def test_a_pause_does_not_keep_a_driver_from_resetting(driver):
    driver.bring_up()
    driver.plane.pause()
    driver.put("Status", 0)
    assert driver.status == 0
    driver.plane.resume()


def test_descriptors_and_deadlines_are_heard_while_the_driver_is_there(driver):
    reader, writer = os.pipe()
    try:
        driver.device.hear = reader
        os.write(writer, b"early")
        time.sleep(0.02)
        assert driver.device.heard == b""
        driver.bring_up()
        driver.device.due = time.monotonic() + 0.01
        driver.kick()
        wait_for(lambda: driver.device.heard == b"early", "the pipe", 5)
        wait_for(lambda: driver.device.ticks == 1, "the clock", 5)
        driver.put("Status", 0)
        driver.device.hear = -1
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.transport("mmio")  # whose edges can get lost
def test_an_interrupt_that_is_not_acknowledged_is_signalled_again_and_then_no_more(driver, monkeypatch):
    monkeypatch.setattr(plane_module, "REMIND_FIRST", 0.005)
    driver.bring_up()
    driver.send(0, [], [6])
    answered(driver)
    wait_for(lambda: driver.interrupts >= 3, "two reminders", 5)
    assert driver.acknowledge() == spec.INTERRUPT_USED_BUFFER
    time.sleep(0.05)
    settled = driver.interrupts
    time.sleep(0.1)
    assert driver.interrupts == settled


def test_a_fault_of_the_model_breaks_the_device_and_not_the_thread(driver):
    driver.bring_up()
    driver.device.error_to_raise = KeyError("a bug")
    driver.send(0, [], [6])
    wait_for(lambda: driver.needs_reset, "the device to ask for a reset", 5)
    assert driver.said == ["slow: internal error: KeyError: 'a bug'"]
    driver.device.error_to_raise = None
    driver.bring_up()
    driver.send(0, [], [6])
    answered(driver)


def test_closing_leaves_no_descriptor_and_no_thread(driver):
    fds = [bell.fd for bell in driver.plane.doorbells]
    driver.plane.close()
    for fd in fds:
        with pytest.raises(OSError):
            os.fstat(fd)
    driver.plane.close()


def test_closing_lets_go_of_guest_memory_that_a_driver_has_left_in_use(driver):
    driver.bring_up()
    driver.send(0, [], [6])
    answered(driver)
    driver.plane.close()
    assert not any(queue.ready or queue._table for queue in driver.device.queues)


def test_a_request_that_never_comes_back_is_told(driver, monkeypatch):
    monkeypatch.setattr(plane_module, "END_WAIT", 0.05)
    driver.bring_up()
    driver.device.gate.clear()
    driver.send(0, [], [6])
    assert driver.device.entered.wait(5)
    with pytest.raises(Exception, match="does not come back"):
        driver.plane.close()
    driver.device.gate.set()
    monkeypatch.setattr(plane_module, "END_WAIT", 5)
