"""Eventfds and interrupt lines."""

from __future__ import annotations

import fcntl
import os
import select
import threading
import time

import pytest

from pyvmm.events import EdgeLine, EventFd, IrqLine, SharedLine


@pytest.fixture
def event():
    event = EventFd()
    yield event
    event.close()


def test_signals_add_up_and_are_drained_once(event):
    assert event.drain() == 0
    event.signal()
    event.signal(3)
    assert event.drain() == 4
    assert event.drain() == 0


def test_it_can_be_polled(event):
    assert select.select([event], [], [], 0)[0] == []
    event.signal()
    assert select.select([event], [], [], 0)[0] == [event]


def test_a_full_counter_neither_blocks_nor_fails(event):
    event.signal(2**64 - 2)  # the most it holds, eventfd(2)
    event.signal()
    assert event.drain() == 2**64 - 2


def test_it_is_closed_on_exec_and_closes_twice():
    event = EventFd()
    fd = event.fileno()
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    event.close()
    event.close()
    assert event.fileno() == -1
    with pytest.raises(OSError):
        os.fstat(fd)


def test_a_level_is_delivered_when_it_changes():
    seen = []
    line = IrqLine(seen.append)
    for asserted in (False, True, True, False, False, True):
        line.set(asserted)
        assert line.asserted == asserted
    assert seen == [True, False, True]


def test_every_pulse_is_delivered():
    seen = []
    line = EdgeLine(lambda: seen.append("edge"))
    line.pulse()
    line.pulse()
    assert seen == ["edge", "edge"]


def test_a_shared_line_is_asserted_while_any_source_asserts_it():
    seen = []
    line = SharedLine(seen.append)
    one, two = line.source(), line.source()
    for source, asserted in (
        (one, False),
        (one, True),
        (two, True),
        (one, True),
        (one, False),
        (two, False),
        (two, False),
    ):
        source.set(asserted)
        assert source.asserted == asserted
    assert seen == [True, False]
    two.set(True)
    assert seen == [True, False, True]


def test_threads_that_share_a_line_leave_it_as_the_last_of_them_does():
    """Also where two threads race with one source: it counts once, and deliveries come in turn and in order."""
    seen = []

    def deliver(asserted):
        time.sleep(0)  # as a system call would, it lets other threads run
        seen.append(asserted)

    line = SharedLine(deliver)
    shared = line.source()
    barrier = threading.Barrier(4)

    def toggle():
        own = line.source()
        barrier.wait()
        for _ in range(300):
            for source in (own, shared):
                source.set(True)
                source.set(False)

    threads = [threading.Thread(target=toggle) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True, False] * (len(seen) // 2), "levels alternate, and the last is low"
    shared.set(True)
    assert seen[-1] is True
