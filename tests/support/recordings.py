"""Recordings of every device model for the tests of replay: each driven through all that it does, without KVM."""

from __future__ import annotations

import errno
import os
import random
import select
from collections.abc import Callable
from struct import pack
from typing import Any

from pyvmm.bus import Bus
from pyvmm.trace.devices.recorded import Recorded
from pyvmm.virtio import spec
from tests.support.memorydisk import MemoryDisk
from tests.support.registers import BASE, MmioRegisters
from tests.support.virtiodriver import Driver, Heap


def nothing(*_: Any) -> None:
    """What a device tells, and nobody wants to know."""


class Ticking:
    """A clock that goes on by a bit with each look."""

    def __init__(self, start: float, step: float) -> None:
        self.now = start
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


# --- Platform devices -------------------------------------------------------------------------------------------------


def mixed(recorded: Recorded, name: str, length: int, count: int, seed: int, values: tuple[int, ...] = ()) -> None:
    """Random accesses of all widths, bytes most of all."""
    lot, device = random.Random(seed), recorded.devices[name]
    for _ in range(count):
        offset, size = lot.randrange(length), lot.choice((1, 1, 1, 1, 2, 4))
        if lot.random() < 0.5:
            device.read(offset, size)
        else:
            value = lot.choice(values) if values and lot.random() < 0.5 else lot.getrandbits(8 * size)
            device.write(offset, size, value & (1 << 8 * size) - 1)


def serial() -> Recorded:
    recorded = Recorded("serial", {}, {"irq": nothing, "output": nothing, "drained": nothing})
    port, lot = recorded.devices["serial"], random.Random(7)
    for offset, value in ((3, 0x83), (0, 1), (1, 0), (3, 3), (2, 0xC7), (1, 0x0F), (4, 0x0B)):
        port.write(offset, 1, value)
    for round_ in range(60):
        recorded.host("receive", bytes(lot.randbytes(lot.choice((1, 3, 20, 600)))))
        for _ in range(lot.randrange(1, 40)):
            offset = lot.choice((0, 0, 0, 2, 5, 5, 6, 1, 3, 4, 7))
            if lot.random() < 0.6:
                port.read(offset, 1)
            elif offset in (0, 7):
                port.write(offset, 1, lot.randrange(256))
            elif offset == 4:
                port.write(4, 1, lot.choice((0x0B, 0x0F, 0x1F, 0x10, 0x08)))
            elif offset == 1:
                port.write(1, 1, lot.choice((0, 1, 2, 3, 5, 0x0F, 8)))
            elif offset == 3 and lot.random() < 0.3:
                port.write(3, 1, lot.choice((3, 0x83, 0x43, 3, 3)))
            elif offset == 2:
                port.write(2, 1, lot.choice((0, 1, 7, 0xC1, 0x41, 0x81, 3, 5)))
        port.write(3, 1, 3)
        if round_ % 4 == 0:
            for _ in range(60):
                port.read(0, 1)
                port.read(5, 1)
    mixed(recorded, "serial", 8, 400, 8)
    for _ in range(1000):
        port.read(5, 1)
    return recorded


def rtc() -> Recorded:
    recorded = Recorded("rtc", {"mem": 5 << 30}, {"clock": Ticking(1_790_000_000.25, 0.001)})
    port, lot = recorded.devices["rtc"], random.Random(3)

    def put(index: int, value: int) -> None:
        port.write(0, 1, index)
        port.write(1, 1, value)

    def get(index: int) -> None:
        port.write(0, 1, index)
        port.read(1, 1)

    for mode in (0x02, 0x06, 0x00, 0x04, 0x86, 0x82, 0x72, 0x76):
        put(0x0B, mode)
        for index in range(128):
            get(index)
        for index in range(10):
            put(index, lot.choice((0, 1, 5, 0x11, 0x12, 0x31, 0x59, 0x81, 0xC0, 0xFF)))
        put(0x0B, mode & 0x7F)
        for rate in (0, 1, 2, 3, 6, 15):
            put(0x0A, 0x20 | rate)
            for index in (0x0A, 0x0C, 0x0B, 0x0D, 0x32, *range(10)):
                get(index)
    for _ in range(400):
        (put if lot.random() < 0.4 else lambda index, _: get(index))(lot.randrange(128), lot.getrandbits(8))
    recorded.host("reset")
    mixed(recorded, "rtc", 2, 200, 4)
    return recorded


def acpi_pm() -> Recorded:
    real = {"irq": nothing, "off": nothing, "clock": Ticking(1000.0, 1.7)}
    recorded = Recorded("acpi-pm", {}, real)
    device, lot = recorded.devices["acpi-pm"], random.Random(5)
    for _ in range(300):
        match lot.randrange(6):
            case 0:
                recorded.host("press_power_button")
            case 1:
                recorded.host("raise_event", lot.randrange(8))
            case 2:
                device.write(lot.choice((0, 2, 12, 13)), 1, 0xFF)
            case 3:
                device.write(4, 2, lot.choice((0x3401, 0x2001, 0x1401, 0x2401, 0x3001)))
            case 4:
                device.write(lot.choice((0, 2, 3, 4, 8)), lot.choice((1, 2, 4)), lot.getrandbits(8))
            case _:
                device.read(*lot.choice(((8, 4), (0, 2), (2, 2), (0, 4), (12, 1), (13, 1), (12, 4), (4, 1), (5, 1))))
    recorded.host("reset")
    mixed(recorded, "acpi-pm", 14, 200, 6)
    return recorded


def i8042() -> Recorded:
    recorded = Recorded("i8042", {"irq": True}, {"irq": nothing, "reset": nothing})
    device, lot = recorded.devices["i8042"], random.Random(9)
    for command in (*range(0x100), 0xFE, 0xFF):
        device.read(4, 1)
        device.write(4, 1, command)
        device.read(4, 1)
        device.write(0, 1, lot.choice((0x45, 0xDD, 0xDF, 0, 0xFF, 0x47)))
        for _ in range(2):
            device.read(4, 1)
            device.read(0, 1)
    for command in (0xA7, 0xA8, 0xAD, 0xAE, 0xAA):
        for register in (command, 0x20):  # and what has become of the command byte
            device.write(4, 1, register)
            device.read(4, 1)
            device.read(0, 1)
    for _ in range(600):
        offset = lot.choice((0, 4))
        if lot.random() < 0.5:
            device.read(offset, 1)
        else:
            device.write(
                offset, 1, lot.choice((0xAA, 0x20, 0x60, 0xD0, 0xD1, 0xD2, 0xD4, 0xF0, 0xFE, 0xAD, 0xAE, 0x21))
            )
    recorded.host("reset_controller")
    for register in (0x20, 0xD0):
        device.write(4, 1, register)
        device.read(0, 1)
    mixed(recorded, "i8042", 5, 200, 10)
    return recorded


def simple(model: str, called: str, length: int, values: tuple[int, ...] = ()) -> Callable[[], Recorded]:
    """A device of a register or two that calls one function."""

    def record() -> Recorded:
        recorded = Recorded(model, {}, {called: nothing})
        for value in (*values, *range(0, 256, 5)):
            recorded.devices[model].read(0, 1)
            recorded.devices[model].write(0, 1, value)
            recorded.devices[model].read(0, 1)
        mixed(recorded, model, length, 60, 11)
        return recorded

    return record


class Wires:
    """Messages go nowhere."""

    route = unroute = signal = staticmethod(nothing)


def pci() -> Recorded:
    real = {"wires": Wires(), "switched": nothing, "commanded": nothing, "decode": nothing, "reset": nothing}
    recorded = Recorded("pci", {}, real)
    ports, table, lot = recorded.devices["pci"], recorded.devices["msix"], random.Random(12)

    def select(device: int, at: int) -> None:
        ports.write(0, 4, 0x80000000 | device << 11 | at & 0xFC)

    for device in (0, 3, 5):
        for at in range(0, 256, 4):
            select(device, at)
            ports.read(4, 4)
    for at in range(0, 256, 4):
        for value in (0xFFFFFFFF, 0xA5C3_96F0, 0):
            if at != 4:
                select(3, at)
                ports.write(4, 4, value)
                ports.read(4, 4)
    for bar in (0x10, 0x14, 0x18):
        select(3, bar)
        ports.write(4, 4, 0xFFFFFFFF)
        ports.read(4, 4)
        ports.write(4, 4, 0xE0000000 + bar * 0x1000)
    for command in (2, 6, 0x406, 0, 0xFFFF, 0x402):
        select(3, 4)
        ports.write(4, 2, command)
        ports.read(4, 4)
    for vector in range(4):
        for word, value in enumerate((0xFEE00000 | vector << 12, 0, 0x41 + vector, 1)):
            table.write(16 * vector + 4 * word, 4, value)
    recorded.host("fire", 0)
    for control in (0x8000, 0xC000, 0x8000):
        for at in range(0x40, 0x70, 4):
            select(3, at)
            if ports.read(4, 1) == 0x11:
                ports.write(6, 2, control)
                ports.read(4, 4)
        for vector in range(3):
            table.write(16 * vector + 12, 4, lot.getrandbits(1))
            recorded.host("fire", vector)
            table.read(0x1000, 8)
            table.write(16 * vector + 12, 4, 0)
            recorded.host("fire", vector)
    for _ in range(300):
        select(lot.choice((0, 3, 3, 3, 7)), lot.randrange(256))
        offset, size = lot.choice(((4, 4), (4, 1), (5, 1), (6, 2), (7, 1), (4, 2), (0, 4), (1, 1), (0, 1)))
        if lot.random() < 0.5:
            ports.read(offset, size)
        else:
            ports.write(offset, size, lot.getrandbits(8 * size))
        at = lot.randrange(0, 0x60, 4)
        table.read(at, lot.choice((4, 8)))
        table.write(at, 4, lot.choice((0, 1, 0xFEE00000, lot.getrandbits(32))))
    for asserted in (True, False):
        recorded.host("show_interrupt", asserted)
        select(3, 4)
        ports.read(4, 4)
    return recorded


# --- virtio -----------------------------------------------------------------------------------------------------------


class Registers(MmioRegisters):
    """Over MMIO, recorded."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.bus = Bus("MMIO", 1 << 52)
        self.bus.attach(BASE, 0x1000, transport)


class RecordedDriver(Driver):
    """A driver whose device is recorded."""

    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded
        self.memory = recorded.memory
        self.device = recorded.devices["mmio"].device.device
        self.registers = Registers(recorded.devices["mmio"])
        self.transport = self.registers.transport
        self.heap = Heap(self.memory)
        self.rings = []
        self.interrupts = 0

    def begin(self, features: int | None = None, size: int | None = None) -> None:
        """All that a driver does at its start, and some that none should do."""
        for offset in range(0, 0x100, 4):
            self.registers.bus.read(BASE + offset, 4)
        for width in (1, 2, 4, 8):
            self.config(0, width)
        self.put("Status", 3)
        self.put("Status", 0x80)
        self.put("QueueNotify", 0)
        self.bring_up(features, size=size)
        self.get("Status")

    def end(self) -> None:
        """It is unloaded."""
        self.acknowledge()
        self.put("QueueSel", 0)
        self.put("QueueReady", 0)
        self.get("QueueReady")
        self.put("Status", 0)
        self.get("Status")


def driven(model: str, options: dict[str, Any], real: dict[str, Any]) -> RecordedDriver:
    return RecordedDriver(Recorded(model, options, {"interrupt": nothing, **real}))


def block() -> Recorded:
    disk = MemoryDisk(sectors=64)
    driver = driven("virtio-block", {}, {"disk": disk})
    driver.begin()
    lot = random.Random(13)

    def ask(kind: int, sector: int, data: bytes = b"", room: int = 0, status: int = 1) -> None:
        driver.request(
            0, [pack("<IIQ", kind, 0, sector), *([data] if data else [])], [*([room] if room else []), status]
        )

    for number in range(60):
        sector, count = lot.randrange(66), lot.randrange(1, 4)
        ask(spec.BLK_T_IN, sector, room=512 * count)
        ask(spec.BLK_T_OUT, sector, data=lot.randbytes(512 * count))
        if number % 5 == 0:
            ask(spec.BLK_T_FLUSH, 0)
            ask(spec.BLK_T_GET_ID, 0, room=lot.choice((20, 8, 40)))
            ask(spec.BLK_T_IN, 1, room=lot.choice((100, 513)))
            ask(lot.choice((2, 99, 16)), 0, room=16)
        for kind in (spec.BLK_T_DISCARD, spec.BLK_T_WRITE_ZEROES):
            segment = pack("<QII", lot.randrange(66), lot.randrange(5), lot.choice((0, 0, 1, 2)))
            ask(kind, 0, data=segment * lot.choice((1, 1, 2)))
        if number % 9 == 0:
            ask(kind, 0, data=b"short")
            driver.put_config(32, 1, number & 1)
            driver.config(32, 1)
            driver.acknowledge()
        if number == 30:
            disk.fails = {"read": errno.EIO, "write": errno.ENOSPC, "flush": errno.EIO}
        if number == 40:
            disk.fails = {}
            disk.resize = lambda size: setattr(disk, "size", size)  # type: ignore[method-assign]
    for readable, writable in (([b"x" * 8], [1]), ([pack("<IIQ", 0, 0, 0)], []), ([pack("<IIQ", 0, 0, 0)], [512, 1])):
        driver.send(0, readable, writable)
        driver.rings[0].used()
    driver.end()
    return driver.recorded


class Network:
    """Frames in memory. `waiting` come in, and `room` go out."""

    vnet_header = False
    direct = None

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.room = 1 << 30

    def fileno(self) -> int:
        return 99

    def offloads(self, *_: object) -> None:
        pass

    def send(self, frame: Any) -> bool:
        self.room -= 1
        return self.room >= 0

    def receive(self) -> Any:
        return memoryview(bytearray(self.waiting.pop(0))) if self.waiting else None

    def close(self) -> None:
        pass


def net() -> Recorded:
    network = Network()
    driver = driven("virtio-net", {"mtu": 1500, "spoof": False}, {"network": network})
    driver.begin(size=32)
    lot, station = random.Random(14), bytes.fromhex("020000000001")
    header = bytes(12)
    for number in range(50):
        for _ in range(3):
            if len(driver.rings[0].free) > 2:
                driver.send(0, [], [lot.choice((64, 1526, 1526, 200))])
        to = lot.choice((station, b"\xff" * 6, bytes.fromhex("0180c2000000"), bytes.fromhex("020000000002")))
        network.waiting += [to + lot.randbytes(lot.choice((6, 8, 40, 300, 1500))) for _ in range(2)]
        recorded = driver.recorded
        recorded.host("ready", 99, select.POLLIN)
        driver.rings[0].used()
        source = lot.choice((station, station, bytes.fromhex("020000000009")))
        frame = b"\xff" * 6 + source + b"\x08\0" + lot.randbytes(lot.choice((0, 46, 600, 1480)))
        driver.send(1, [header if number % 7 else header[:4], frame][number % 11 == 10 :])
        driver.rings[1].used()
        if number % 10 == 3:
            network.room = 1
            driver.send(1, [header + frame])
            driver.send(1, [header + frame])
            network.room = 1 << 30
            recorded.host("ready", 99, select.POLLOUT)
            driver.rings[1].used()
        commands = (
            *((0, one, bytes((number >> one & 1,))) for one in range(6)),
            *((1, 1, bytes.fromhex("020000000003")), (1, 0, pack("<I", 0) + pack("<I6s", 1, to)), (0, 9, b"\1")),
            *((7, 0, b""), (1, 1, b"xx"), (2, 0, b"\1\0")),
        )
        kind, command, data = commands[number % len(commands)]
        driver.request(2, [bytes((kind, command)), *([data] if data else [])], [1])
        if number % 8 == 5:
            recorded.host("set_link", number % 16 == 5)
            driver.config(6, 2)
            driver.acknowledge()
    driver.end()
    return driver.recorded


def console() -> Recorded:
    driver = driven("virtio-console", {"ports": ["", "data"]}, dict.fromkeys(
        (f"{what}:{port}" for what in ("output", "drained", "open") for port in ("", "data")), nothing))  # fmt: skip
    driver.begin(size=16)
    recorded, lot = driver.recorded, random.Random(15)
    for queue in (0, 2, 4):
        for _ in range(6):
            driver.send(queue, [], [64])
    for event, value in ((0, 1), (3, 1), (6, 1), (3, 0), (6, 0), (6, 1), (9, 0)):
        for port in (0, 1, 7):
            driver.send(3, [pack("<IHH", port, event, value)])
            driver.rings[3].used()
    for number in range(36):
        recorded.host(lot.choice(("receive:", "receive:data")), lot.randbytes(lot.choice((1, 30, 200, 900))))
        for queue in (0, 2, 4):
            for _, _ in driver.rings[queue].used():
                driver.send(queue, [], [lot.choice((1, 16, 64, 256))])
        for queue in (1, 5):
            driver.send(queue, [lot.randbytes(lot.randrange(1, 300)), b"end"])
            driver.rings[queue].used()
        match number % 12:
            case 1:
                recorded.host("connect:data", True)
            case 4:
                recorded.host("resize", 80 + number, 24)
                driver.config(0, 4)
            case 6:
                recorded.host("hold:data")
            case 8:
                recorded.host("release:data")
            case 9:
                recorded.host("connect:data", False)
            case 10:
                driver.put_config(8, 4, 0x41)
        driver.acknowledge()
    driver.send(3, [b"short"])
    driver.end()
    return recorded


def rng() -> Recorded:
    lot = random.Random(16)
    clock, empty = Ticking(5.0, 0.01), iter(range(1, 10_000))

    def source(count: int) -> bytes:
        turn = next(empty)
        if turn % 13 == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return b"" if turn % 7 == 0 else lot.randbytes(min(count, 100 if turn % 3 else 40))

    driver = driven("virtio-rng", {"rate": 2000}, {"source": source, "clock": clock})
    driver.begin()
    for number in range(80):
        if len(driver.rings[0].free) > 2:
            driver.send(0, [], [lot.choice((1, 16, 64, 500, 5000))])
        due = driver.recorded.host("deadline")
        if due is not None:
            driver.recorded.host("due", due - 0.0005)
            clock.now = due + lot.random()
            driver.recorded.host("due", due)
        driver.rings[0].used()
        driver.acknowledge()
        if number == 60:
            driver.end()
            driver.bring_up()
    driver.end()
    return driver.recorded


def balloon() -> Recorded:
    driver = driven("virtio-balloon", {"size": 1 << 16}, {"clock": Ticking(1.0, 0.5)})
    driver.begin()
    recorded, lot = driver.recorded, random.Random(17)
    for number in range(50):
        if number % 5 == 0:
            driver.memory.fill(0xC0000, 0x20000, 0x5A)
        pages = [lot.choice((0xC0 + lot.randrange(16), 0xD0, 0xFFFF, 0x100)) for _ in range(lot.randrange(1, 9))]
        data = pack(f"<{len(pages)}I", *pages)
        driver.request(lot.choice((0, 1)), [data if number % 7 else data + b"x"])
        driver.put_config(4, 4, lot.randrange(64))
        driver.config(0, 8)
        if number % 6 == 0:
            recorded.host("set_target", lot.randrange(0, 1 << 20, 4096))
        if number % 5 == 0:
            statistics = b"".join(pack("<HQ", tag, lot.getrandbits(40)) for tag in lot.sample(range(12), 5))
            if number == 0 or driver.rings[2].used():
                driver.send(2, [statistics if number % 2 else statistics[:-3]])
            recorded.host("request_statistics")
        if len(driver.rings) > 4 and number % 4 == 0:
            driver.request(4, [], [4096])
        recorded.host("told")
        due = recorded.host("deadline")
        if due is not None:
            recorded.host("due", due)
        driver.acknowledge()
    driver.end()
    return recorded


class Server:
    """Files that are none: it turns messages round."""

    report = None
    in_session = False

    def serve(self, exchange: Any) -> int:
        data = bytes(exchange.read(0, exchange.length))
        given = b"".join(bytes(one) for one in exchange.given(2, 4))
        written = int(exchange.write(data[::-1][: exchange.room]))
        for view in exchange.space(max(exchange.room - 4, 0), 4):
            view[:] = b"\x5a" * len(view)
        return written + len(given) * 0

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


def share() -> Recorded:
    driver = driven("virtio-9p", {"tag": "files"}, {"server": Server()})
    driver.begin()
    lot = random.Random(18)
    for number in range(80):
        message = lot.randbytes(lot.randrange(1, 200))
        readable = [message] if number % 3 else [message[:7], message[7:] or b"x"]
        driver.send(0, readable, [lot.choice((7, 64, 300)), 16][: number % 4], indirect=number % 5 == 0)
        driver.rings[0].used()
        if number % 6 == 0:
            for _ in range(20):
                if driver.rings[0].free:
                    driver.rings[0].add(driver.heap, [message], [32])
            driver.kick(0)
            driver.rings[0].used()
        for offset in range(8):
            driver.config(offset, 1 if offset % 2 else 2)
        driver.acknowledge()
    device = driver.recorded.devices["mmio"]
    for offset in (*range(0, 0x70, 4), *range(0x74, 0x108, 4)):  # of any width, also where nothing can be written
        for size in (1, 2, 4):
            device.read(offset, size)
            device.read(offset + 3, 1)
            device.write(offset, size, 0)
    driver.end()
    return driver.recorded


class Stream:
    """A stream of the host's, which sends `data` and takes everything."""

    owner = None

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.room = 1 << 20

    def read(self, buffers: Any) -> int:
        if not self.data:
            raise BlockingIOError(errno.EAGAIN, "nothing now")
        count = 0
        for buffer in buffers:
            part = self.data[: len(buffer)]
            buffer[: len(part)] = part
            self.data, count = self.data[len(part) :], count + len(part)
        return count

    def write(self, buffers: Any) -> int:
        total = min(sum(map(len, buffers)), self.room)
        if not total:
            raise BlockingIOError(errno.EAGAIN, "no room now")
        self.room -= total
        return total

    def notice_room(self, wanted: bool) -> None:
        pass

    def end_input(self) -> None:
        pass

    def end_output(self) -> None:
        pass

    def accept(self, port: int) -> None:
        pass

    def close(self) -> None:
        pass


class Sockets:
    """The host's side: whoever connects to an even port is answered."""

    on_call: Any = None

    def __init__(self) -> None:
        self.events: list[tuple[Stream, int]] = []
        self.calls: list[tuple[int, Stream]] = []
        self.streams: list[Stream] = []

    def fileno(self) -> int:
        return 77

    def poll(self) -> list[tuple[Stream, int]]:
        for port, stream in self.calls:
            self.on_call(port, stream)
        events, self.events, self.calls = self.events, [], []
        return events

    def connect(self, port: int) -> Stream:
        if port % 2:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody")
        stream = Stream(b"welcome" * 30)
        self.streams.append(stream)
        return stream

    def deadline(self) -> None:
        return None

    def tick(self, now: float) -> None:
        pass

    def close(self) -> None:
        pass


def vsock() -> Recorded:
    sockets = Sockets()
    driver = driven("virtio-vsock", {"cid": 3}, {"sockets": sockets, "clock": Ticking(1.0, 0.01)})
    driver.begin(size=32)
    recorded, lot = driver.recorded, random.Random(19)
    for _ in range(12):
        driver.send(0, [], [400])
    driver.send(2, [], [8])

    for number in range(80):
        port, op = lot.choice((10, 10, 12, 14, 11)), lot.choice((1, 5, 5, 5, 5, 7, 6, 4, 3, 2, 0, 9))
        if number % 10 == 0:
            port, op = (10, 12, 14)[number // 10 % 3], 1
        data = lot.randbytes(lot.randrange(1, 200)) if op == 5 else b""
        flags, kind = lot.choice((0, 1, 2, 3)) if op == 4 else 0, lot.choice((1,) * 12 + (2,))
        source = 3 if number % 17 else 4
        room, taken = lot.choice((4000, 4000, 100)), lot.randrange(200)
        header = pack("<QQIIIHHIII", source, 2, 1000 + port, port, len(data), kind, op, flags, room, taken)
        driver.send(1, [header, *([data] if data else [])] if number % 13 else [header[:20]])
        driver.rings[1].used()
        for _ in driver.rings[0].used():
            driver.send(0, [], [lot.choice((400, 60))])
        if sockets.streams and number % 3 == 0:
            stream = lot.choice(sockets.streams)
            stream.data += lot.randbytes(lot.choice((5, 300)))
            sockets.events.append((stream, lot.choice((select.POLLIN, select.POLLOUT, select.POLLIN | select.POLLOUT))))
            recorded.host("ready", 77, select.POLLIN)
        if number % 15 == 4:
            sockets.calls.append((5000 + number, Stream(b"hello")))
            recorded.host("ready", 77, select.POLLIN)
        due = recorded.host("deadline")
        if due is not None and number % 5 == 0:
            recorded.host("due", due)
        driver.acknowledge()
        if number == 50:
            recorded.host("transport_reset")
    driver.end()
    return recorded


MAKERS: dict[str, tuple[str, Callable[[], Recorded]]] = {
    "serial": ("pyvmm.devices.serial", serial),
    "rtc": ("pyvmm.devices.rtc", rtc),
    "acpi-pm": ("pyvmm.devices.acpipm", acpi_pm),
    "i8042": ("pyvmm.devices.i8042", i8042),
    "port92": ("pyvmm.devices.port92", simple("port92", "reset", 1)),
    "resetcontrol": ("pyvmm.devices.resetcontrol", simple("resetcontrol", "reset", 1)),
    "pvpanic": ("pyvmm.devices.pvpanic", simple("pvpanic", "panicked", 1)),
    "debugexit": ("pyvmm.devices.debugexit", simple("debugexit", "end", 4)),
    "debugcon": ("pyvmm.devices.debugcon", simple("debugcon", "output", 1)),
    "pci configuration": ("pyvmm.pci.config", pci),
    "pci bridge": ("pyvmm.pci.bridge", pci),
    "msix": ("pyvmm.pci.msix", pci),
    "virtio-mmio": ("pyvmm.virtio.mmio", share),
    "virtio-block": ("pyvmm.virtio.block", block),
    "virtio-net": ("pyvmm.virtio.net", net),
    "virtio-console": ("pyvmm.virtio.console", console),
    "virtio-rng": ("pyvmm.virtio.rng", rng),
    "virtio-balloon": ("pyvmm.virtio.balloon", balloon),
    "virtio-9p": ("pyvmm.virtio.p9", share),
    "virtio-vsock": ("pyvmm.virtio.vsock", vsock),
}
"""By what the device is called: its module, and what records it."""
