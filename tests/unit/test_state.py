"""Saving and restoring models: what is saved is plain, what is restored is judged, and no guest notices."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.devices import serial_registers as uart
from pyvmm.devices.acpipm import AcpiPm
from pyvmm.devices.i8042 import I8042
from pyvmm.devices.rtc import Rtc
from pyvmm.devices.serial import Serial
from pyvmm.events import IrqLine
from pyvmm.machine import Machine
from pyvmm.memory import GuestMemory
from pyvmm.state import (
    FLAG,
    SECONDS,
    U8,
    Bytes,
    Maybe,
    Number,
    Numbered,
    Pair,
    Several,
    StateError,
    Stateful,
    Text,
    queue_of,
)
from pyvmm.virtio import spec
from pyvmm.virtio.balloon import VirtioBalloon
from pyvmm.virtio.block import VirtioBlock
from pyvmm.virtio.console import VirtioConsole
from pyvmm.virtio.port import Port
from pyvmm.virtio.rng import VirtioRng
from pyvmm.virtio.saving import restore_device, save_device
from tests.support.memorydisk import MemoryDisk
from tests.support.virtiodriver import Driver


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


# --- Kinds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Number(10, -10), [-10, 0, 10], [11, -11, True, 1.0, "1", None]),
        (FLAG, [True, False], [0, 1, None, "true"]),
        (SECONDS, [0.0, -1.5, 1e9], ["1", None, True, float("nan"), float("inf")]),
        (Text(3), ["", "abc"], ["abcd", 1, None]),
        (Bytes(2), [bytearray(b"ab")], ["00", "000000", "zz", 1, None]),
        (Bytes(limit=2, container=bytes), [b"", b"ab"], ["000000"]),
        (Several(U8, 2), [[], [1, 2]], [[1, 2, 3], [256], "12", {}]),
        (Several(U8, 2, exact=True), [[1, 2]], [[1], []]),
        (Several(U8, 4, container=set), [{3, 1}, set()], [[-1]]),
        (queue_of(U8, 3), [deque([1, 2, 3])], [[0] * 4]),
        (Maybe(U8), [None, 5], ["5", 256]),
        (Pair(U8, FLAG), [(1, True)], [[1], [1, 1], [1, True, 2], {}]),
        (Numbered(9, U8), [{}, {3: 4, 9: 0}], [[[10, 0]], [[1]], {"1": 2}]),
    ],
)
def test_a_kind_takes_what_it_is_for_and_nothing_else(kind: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        again = kind.judge(through_json(kind.save(value)))
        assert again == value
        assert type(again) is type(value)
    for saved in bad:
        with pytest.raises(StateError):
            kind.judge(saved)


class Thing(Stateful):
    STATE = {"_a": U8, "b": FLAG}
    name = "thing"

    def __init__(self) -> None:
        self._a, self.b = 1, False


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"a": 1}, "thing: b is missing"),
        ({"a": 1, "b": True, "c": 0}, "thing: 'c' is nothing that it has"),
        ({"a": 256, "b": True}, "thing: a is 256 .expected a number from 0 to 255"),
        ([], "thing: is .. .expected an object"),
    ],
)
def test_bad_state_changes_nothing_and_says_what_is_wrong(state: object, problem: str) -> None:
    thing = Thing()
    with pytest.raises(StateError, match=problem):
        thing.restore(state)
    assert thing.save() == {"a": 1, "b": False}


def test_a_model_that_says_nothing_of_its_state_cannot_be_saved() -> None:
    class Silent(Stateful):
        name = "silent"

    with pytest.raises(StateError, match="silent cannot be saved"):
        Silent().save()
    with pytest.raises(StateError, match="silent cannot be restored"):
        Silent().restore({})


# --- Platform devices ----------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 7), st.integers(0, 255)),
        st.tuples(st.just("read"), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("receive"), st.integers(0, 40), st.integers(0, 255)),
        st.tuples(st.just("break"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


def drive(serial: Serial, steps: list[tuple[str, int, int]]) -> list[object]:
    seen: list[object] = []
    for what, number, value in steps:
        if what == "write":
            serial.write(number, 1, value)
        elif what == "read":
            seen.append(serial.read(number, 1))
        elif what == "receive":
            seen.append(serial.receive(bytes([value]) * number))
        else:
            seen.append(serial.receive_break())
        seen.append(serial._irq.asserted)
    return seen


@settings(max_examples=80, deadline=None)
@given(before=STEPS, after=STEPS, waits=st.booleans())
def test_a_serial_port_that_was_saved_behaves_as_one_that_was_not(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]], waits: bool
) -> None:
    outputs = bytearray(), bytearray()
    first = Serial(IrqLine(lambda asserted: None), outputs[0].extend, waits=waits)
    drive(first, before)
    levels: list[bool] = []
    other = Serial(IrqLine(levels.append), outputs[1].extend, waits=waits)
    other.restore(through_json(first.save()))
    assert other._irq.asserted == first._irq.asserted
    assert levels == [True] * first._irq.asserted
    outputs[0].clear()
    assert drive(other, after) == drive(first, after)
    assert outputs[0] == outputs[1]
    assert other.save() == first.save()


def test_the_divisor_latch_stays_selected() -> None:
    first = Serial(IrqLine(lambda asserted: None), lambda data: None)
    first.write(3, 1, uart.LCR_DLAB)
    first.write(0, 1, 0x34)
    other = Serial(IrqLine(lambda asserted: None), lambda data: None)
    other.restore(through_json(first.save()))
    assert other.read(0, 1) == 0x34
    assert other.bank == uart.DIVISOR_LATCH


def test_a_restored_clock_shows_the_time_that_it_is_then() -> None:
    first = Rtc(1 << 27, 0, clock=lambda: 1_000_000.0)
    first.write(0, 1, 0x30)
    first.write(1, 1, 0x55)
    other = Rtc(1 << 27, 0, clock=lambda: 1_000_003.0)
    other.restore(through_json(first.save()))
    other.write(0, 1, 0x00)
    first.write(0, 1, 0x00)
    seconds = [(rtc.read(1, 1) >> 4) * 10 + (rtc.read(1, 1) & 15) for rtc in (first, other)]
    assert (seconds[1] - seconds[0]) % 60 == 3
    state = other.save()
    state["set_time"] = [[1, 2]]
    with pytest.raises(StateError, match="set_time"):
        Rtc(1 << 27, 0).restore(state)


def test_the_power_management_timer_goes_on_from_where_it_was() -> None:
    now = [1000.0, 5.0]
    first, other = (
        AcpiPm(IrqLine(lambda asserted: None), lambda: None, off_types=(5,), clock=lambda at=at: now[at])  # type: ignore[misc]
        for at in range(2)
    )
    first.write(2, 2, 0x100)
    first.press_power_button()
    other.restore(through_json(first.save()))
    assert other.timer == first.timer
    assert other._irq.asserted
    now[1] += 1
    assert other.timer == (first.timer + 3_579_545) & 0xFFFFFFFF


def test_a_keyboard_controller_answers_after_a_restore_what_it_was_asked_before() -> None:
    first, other = I8042(lambda: None), I8042(lambda: None)
    first.command_port.write(0, 1, 0xAA)
    other.restore(through_json(first.save()))
    assert other.data_port.read(0, 1) == 0x55


def test_every_device_of_the_machine_says_what_its_state_is() -> None:
    machine = Machine([(0, 1 << 27)], lambda gsi, asserted: None, lambda data: None, lambda outcome: None)
    for bus in (machine.ports, machine.mmio):
        for _, _, device in bus.ranges():
            for model in getattr(device, "models", (device,)):
                assert isinstance(model, Stateful)
                model.restore(through_json(model.save()))


# --- virtio --------------------------------------------------------------------------------------------------------


def moved(driver: Driver, device: Any) -> Driver:
    """A driver with the same view of the world, its device another one that was restored from the first."""
    other = Driver(device)
    other.memory.write(0, driver.memory.read(0, driver.memory.size))
    state = through_json(save_device(driver.device, driver.transport))
    other.rings, other.heap = driver.rings, driver.heap
    for ring in other.rings:
        ring.memory = other.memory
    other.heap.memory = other.memory
    restore_device(device, other.transport, state)
    for queue in device.queues:
        if queue.ready:
            device.serve_unless_broken(queue.index)
    other.transport.remind()
    return other


def header(kind: int, sector: int) -> bytes:
    return kind.to_bytes(8, "little") + sector.to_bytes(8, "little")


def test_a_disk_goes_on_where_it_was() -> None:
    disk = MemoryDisk()
    driver = Driver(VirtioBlock(disk, queues=2)).bring_up()
    for number in range(20):  # once round the ring
        written, data = driver.request(0, [header(spec.BLK_T_OUT, number), bytes([number]) * 512], [1])
        assert data == b"\0"
    driver.rings[1].add(driver.heap, [header(spec.BLK_T_IN, 3)], [512, 1])  # nobody has been told of it
    other = moved(driver, VirtioBlock(disk, queues=2))
    [(head, written)] = other.rings[1].used()
    assert (written, other.rings[1].written(head)) == (513, bytes([3]) * 512 + b"\0")
    written, data = other.request(0, [header(spec.BLK_T_IN, 5)], [512, 1])
    assert data == bytes([5]) * 512 + b"\0"
    assert other.status == 15


def test_interrupts_that_were_not_taken_come_again() -> None:
    driver = Driver(VirtioBlock(disk := MemoryDisk())).bring_up()
    driver.request(0, [header(spec.BLK_T_IN, 0)], [512, 1])
    other = moved(driver, VirtioBlock(disk))
    assert other.interrupts > 0


def test_another_disk_is_refused() -> None:
    driver = Driver(VirtioBlock(MemoryDisk())).bring_up()
    with pytest.raises(StateError, match="the disk had"):
        moved(driver, VirtioBlock(MemoryDisk(sectors=8)))
    with pytest.raises(StateError, match="features"):
        moved(driver, VirtioBlock(MemoryDisk(readonly=True)))
    with pytest.raises(StateError, match="another number of queues"):
        moved(driver, VirtioBlock(MemoryDisk(), queues=3))
    with pytest.raises(StateError, match="of type 2"):
        moved(driver, VirtioRng())


def test_a_request_that_waits_is_taken_again() -> None:
    empty = [True]
    driver = Driver(VirtioRng(source=lambda count: b"" if empty[0] else b"r" * count)).bring_up()
    driver.send(0, [], [16])
    assert driver.rings[0].used() == []
    assert driver.device.queues[0].in_flight == 1
    other = moved(driver, VirtioRng(source=lambda count: b"s" * count))
    [(head, _)] = other.rings[0].used()
    assert other.rings[0].written(head) == b"s" * 16
    assert other.request(0, [], [4]) == (4, b"ssss")


def test_output_in_hand_goes_on_where_it_stopped() -> None:
    sent, more = bytearray(), bytearray()
    first = Port(output=sent.extend)
    driver = Driver(VirtioConsole([first])).bring_up(without=[spec.CONSOLE_F_MULTIPORT])

    def once(data: bytes) -> None:
        sent.extend(data)
        first.hold()

    first.output = once
    data = bytes(range(256)) * 160
    driver.send(1, [data])
    assert 0 < len(sent) < len(data)
    other = moved(driver, VirtioConsole([Port(output=more.extend)]))
    assert sent + more == data
    assert len(other.rings[1].used()) == 1


def test_input_that_the_guest_has_no_buffer_for_is_not_lost() -> None:
    port, again = Port(), Port()
    driver = Driver(VirtioConsole([port])).bring_up(without=[spec.CONSOLE_F_MULTIPORT])
    port.receive(b"typed ahead")
    other = moved(driver, VirtioConsole([again]))
    head = other.send(0, [], [64])
    assert other.rings[0].used() == [(head, 11)]
    assert other.rings[0].written(head)[:11] == b"typed ahead"


def test_a_balloon_keeps_its_size() -> None:
    driver = Driver(VirtioBalloon(size=8 << 12)).bring_up()
    driver.put_config(4, 4, 3)
    other = moved(driver, VirtioBalloon())
    assert (other.config(0, 4), other.config(4, 4)) == (8, 3)


def test_rings_that_are_none_are_refused() -> None:
    driver = Driver(VirtioRng()).bring_up()
    state = through_json(save_device(driver.device, driver.transport))
    state["queues"][0]["descriptors"] = 1 << 40
    device = VirtioRng()
    device.memory = GuestMemory.allocate([(0, 1 << 20)])
    with pytest.raises(StateError, match="not in RAM"):
        restore_device(device, Driver(VirtioRng()).transport, state)
