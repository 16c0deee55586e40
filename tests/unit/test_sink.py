"""OutputSink on pipes that are read, slow, blocked and closed: nothing lost, nothing reordered, nobody blocked."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.backends import sink as sink_module
from pyvmm.backends.sink import GATHER, HIGH_WATER, LOW_WATER, PIECE, OutputSink, _room
from tests.support.cli import wait_for

PIPE_CAPACITY = 64 << 10  # pipe(7)


class Flow:
    """What the sink told the VM."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.errors: list[int] = []
        self.told = threading.Event()

    def hold(self) -> None:
        self.calls.append("hold")

    def release(self) -> None:
        self.calls.append("release")
        self.told.set()

    def broken(self, number: int) -> None:
        self.errors.append(number)
        self.told.set()

    def sink(self, fd: int | None) -> OutputSink:
        return OutputSink(fd, hold=self.hold, release=self.release, broken=self.broken)


@pytest.fixture
def flow() -> Flow:
    return Flow()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe()
    yield read_end, write_end
    for fd in (read_end, write_end):
        try:
            os.close(fd)
        except OSError:
            pass  # the test has closed it


def read_exactly(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = os.read(fd, count - len(data))
        assert more, f"end of file after {len(data)} of {count} bytes"
        data += more
    return data


def test_bytes_arrive_in_order_whatever_their_sizes(flow, pipe):
    read_end, write_end = pipe
    sink = flow.sink(write_end)
    expected = b""
    for number in range(300):
        piece = bytes([number & 0xFF]) * (number % 7 + 1)
        sink.write(piece)
        expected += piece
    assert sink.drain(5)
    assert read_exactly(read_end, len(expected)) == expected
    sink.close()
    assert flow.calls == [] and flow.errors == []


@settings(max_examples=15, deadline=None)
@given(st.lists(st.binary(max_size=3 * PIECE), max_size=20))
def test_any_sequence_of_writes_is_one_stream(pieces):
    flow = Flow()
    read_end, write_end = os.pipe()
    received = bytearray()
    reader = threading.Thread(target=lambda: received.extend(iter_read(read_end)))
    reader.start()
    sink = flow.sink(write_end)
    for piece in pieces:
        sink.write(piece)
    assert sink.drain(5)
    sink.close()
    os.close(write_end)
    reader.join(5)
    os.close(read_end)
    assert bytes(received) == b"".join(pieces)


def iter_read(fd: int) -> bytes:
    data = b""
    while more := os.read(fd, 65536):
        data += more
    return data


def test_the_last_bytes_are_out_before_drain_returns(flow, pipe):
    read_end, write_end = pipe
    os.set_blocking(read_end, False)
    sink = flow.sink(write_end)
    sink.write(b"bye")
    assert sink.drain(5)
    assert os.read(read_end, 10) == b"bye"
    sink.close()


def test_a_blocked_reader_holds_the_vm_and_loses_nothing(flow, pipe):
    read_end, write_end = pipe
    sink = flow.sink(write_end)
    sent = os.urandom(PIPE_CAPACITY + 2 * HIGH_WATER)
    began = time.monotonic()
    for at in range(0, len(sent), 1024):
        sink.write(sent[at : at + 1024])
    assert time.monotonic() - began < 5
    assert not sink.drain(0.2), "drain waits for a reader who does not read"
    assert flow.calls[-1] == "hold"
    flow.calls.clear()
    assert read_exactly(read_end, len(sent)) == sent
    assert flow.told.wait(5)
    assert sink.drain(5) and flow.calls == ["release"]
    sink.close()


def test_release_comes_at_low_water_not_at_the_first_byte_read(flow, pipe):
    read_end, write_end = pipe
    sink = flow.sink(write_end)
    total = PIPE_CAPACITY + HIGH_WATER
    sink.write(bytes(total))
    assert flow.calls == ["hold"]
    read_exactly(read_end, PIECE)
    time.sleep(0.05)
    assert flow.calls == ["hold"]
    read_exactly(read_end, total - PIPE_CAPACITY - LOW_WATER)
    assert flow.told.wait(5)
    assert sink.backlog <= LOW_WATER
    read_exactly(read_end, total - PIECE - (total - PIPE_CAPACITY - LOW_WATER))
    sink.close()


def test_drain_goes_on_while_a_slow_reader_makes_progress(flow, pipe):
    read_end, write_end = pipe
    sink = flow.sink(write_end)
    total = PIPE_CAPACITY + 5 * PIECE

    def slowly() -> None:
        for _ in range(5):
            time.sleep(0.3)
            read_exactly(read_end, PIECE)

    reader = threading.Thread(target=slowly)
    sink.write(bytes(total))
    reader.start()
    assert sink.drain(1.2), "progress every 0.3 s is progress"
    reader.join()
    sink.close()


def test_a_closed_reader_is_told_once_and_the_rest_discarded(flow, pipe):
    read_end, write_end = pipe
    sink = flow.sink(write_end)
    os.close(read_end)
    sink.write(b"x")
    assert flow.told.wait(5)
    for _ in range(100):
        sink.write(bytes(HIGH_WATER))
    assert sink.drain(0.1), "there is nothing to wait for"
    assert flow.errors == [errno.EPIPE] and flow.calls == []
    assert sink.backlog <= HIGH_WATER
    sink.close()


def test_a_reader_that_closes_while_the_vm_is_held_releases_it(flow, pipe):
    read_end, write_end = pipe
    sink = flow.sink(write_end)
    sink.write(bytes(PIPE_CAPACITY + 2 * HIGH_WATER))
    assert flow.calls == ["hold"]
    os.close(read_end)
    assert flow.told.wait(5)
    deadline = time.monotonic() + 5
    while not flow.errors and time.monotonic() < deadline:
        time.sleep(0.01)
    assert flow.calls == ["hold", "release"] and flow.errors == [errno.EPIPE]
    sink.close()


def test_a_closed_descriptor_is_an_error_too(flow):
    fd = os.open("/dev/null", os.O_RDONLY)
    sink = flow.sink(fd)
    sink.write(b"x")
    assert flow.told.wait(5)
    assert flow.errors == [errno.EBADF]
    sink.close()
    os.close(fd)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_an_error_too(flow):
    fd = os.open("/dev/full", os.O_WRONLY)
    sink = flow.sink(fd)
    sink.write(b"x")
    assert flow.told.wait(5)
    assert flow.errors == [errno.ENOSPC]
    sink.close()
    os.close(fd)


def test_a_non_blocking_descriptor_is_polled_and_stays_non_blocking(flow, pipe):
    read_end, write_end = pipe
    os.set_blocking(write_end, False)
    sink = flow.sink(write_end)
    data = os.urandom(PIPE_CAPACITY + 3 * PIECE)
    sink.write(data)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.1, "it spins"
    assert read_exactly(read_end, len(data)) == data
    assert sink.drain(5)
    assert not os.get_blocking(write_end)
    sink.close()


def test_a_blocking_descriptor_stays_blocking(flow, pipe):
    _, write_end = pipe
    sink = flow.sink(write_end)
    sink.write(b"x")
    assert sink.drain(5)
    sink.close()
    assert os.get_blocking(write_end)


def test_what_a_descriptor_takes_without_blocking_goes_out_at_once(pipe, tmp_path):
    write_end = pipe[1]
    assert _room(write_end) == PIPE_CAPACITY
    os.write(write_end, bytes(PIPE_CAPACITY - 10_000))
    assert _room(write_end) == 10_000
    os.write(write_end, bytes(8_000))
    assert _room(write_end) == PIECE, "it may block, for little"
    with open(tmp_path / "file", "wb") as file:
        assert _room(file.fileno()) == HIGH_WATER
    os.set_blocking(write_end, False)
    assert _room(write_end) == HIGH_WATER
    with open("/dev/null", "wb") as unknown:
        assert _room(unknown.fileno()) == PIECE


@pytest.mark.parametrize("blocking", [True, False])
def test_close_does_not_wait_for_a_blocked_reader(flow, pipe, blocking, monkeypatch):
    read_end, write_end = pipe
    os.set_blocking(write_end, blocking)
    if not blocking:
        monkeypatch.setattr(sink_module, "CLOSE_WAIT", 60.0)  # as long as for a thread that could not be woken
    sink = flow.sink(write_end)
    sink.write(bytes(PIPE_CAPACITY + HIGH_WATER))
    time.sleep(0.05)
    began = time.monotonic()
    sink.close()
    assert time.monotonic() - began < 30
    sink.close()
    sink.write(b"ignored")
    os.close(read_end)  # lets a thread stuck in write(2) go


def test_close_leaves_no_thread_and_no_descriptor(flow, pipe, monkeypatch):
    monkeypatch.setattr(sink_module, "CLOSE_WAIT", 60.0)
    _, write_end = pipe
    os.set_blocking(write_end, False)
    threads, fds = threading.active_count(), len(os.listdir("/proc/self/fd"))
    sink = flow.sink(write_end)
    sink.write(bytes(PIPE_CAPACITY + HIGH_WATER))
    time.sleep(0.05)
    sink.close()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == fds


def test_without_a_descriptor_the_end_of_the_output_is_kept_for_the_next_one(flow, pipe):
    read_end, write_end = pipe
    os.set_blocking(write_end, False)
    sink = flow.sink(None)
    sink.write(b"old" + bytes(HIGH_WATER))
    sink.write(b"new")
    assert flow.calls == [], "nobody to wait for"
    sink.attach(write_end)
    kept = read_exactly(read_end, HIGH_WATER)
    assert kept == bytes(HIGH_WATER - 3) + b"new"
    sink.close()


def test_what_a_descriptor_did_not_take_goes_to_the_next_one_in_order(flow, pipe):
    read_end, write_end = pipe
    os.set_blocking(write_end, False)
    sink = flow.sink(write_end)
    data = os.urandom(PIPE_CAPACITY + 4 * PIECE)
    sink.write(data)
    wait_for(lambda: sink.backlog == 4 * PIECE, "the pipe to be full")
    sink.write(b"later, ")
    sink.detach()
    sink.write(b"still later")
    first = read_exactly(read_end, PIPE_CAPACITY)
    other_read, other_write = os.pipe()
    sink.attach(other_write)
    assert first + read_exactly(other_read, 4 * PIECE + 18) == data + b"later, still later"
    sink.close()
    os.close(other_read)
    os.close(other_write)


def test_a_flood_of_single_bytes_costs_few_wake_ups(flow, pipe):
    """The thread gathers: bytes that come one by one are far fewer writes."""
    read_end, write_end = pipe
    writes = 0
    sink = flow.sink(write_end)
    real = os.write

    def counting(fd: int, data: bytes) -> int:
        nonlocal writes
        writes += 1
        return real(fd, data)

    os.write = counting  # type: ignore[assignment]
    try:
        began = time.monotonic()
        for _ in range(500):
            sink.write(b"x")
            time.sleep(0.0001)  # a vCPU in the guest: the writer has all the time it wants
        elapsed = time.monotonic() - began
        assert sink.drain(5)
    finally:
        os.write = real
    assert read_exactly(read_end, 500) == b"x" * 500
    assert writes <= elapsed / GATHER + 5
    sink.close()
