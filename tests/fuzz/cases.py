"""From bytes to what happens to a device: a list of operations, each a tuple of plain data.

A case's bytes are records of RECORD bytes: the first decides on the device's settings and how it is brought up, each
other one is an operation. So cutting, joining and repeating records makes sense of its own. In a record zeros mean the
ordinary thing, and so does a record's end: what is spoilt is spoilt by large bytes.

    ("bring up", features done otherwise, ring size[, queue, part, value])      the whole way from reset to DRIVER_OK
    ("negotiate", features done otherwise)                up to FEATURES_OK
    ("greet",)                                     what a good driver begins with, then
    ("set up", queue, ring size, part, value)      one queue; `part` ("" for none) gets `value` instead
    ("status", value) ("reset",) ("acknowledge",)
    ("read", offset, size) ("write", offset, size, value)      any register or configuration field
    ("chain", queue, readable, writable, layout, spoilt, kicked)      a request; `spoilt` is (what, at, value) or ()
    ("descriptor", queue, index, gpa, length, flags, next) ("available", queue, head) ("index", queue, ahead)
    ("flags", queue, value) ("used event", queue, ahead) ("poke", gpa, bytes) ("kick", queue)
    ("host", what, ...)      something of the kind of device: input, an error of the host's
    ("pci read", place, offset, size) ("pci write", place, offset, size, value)      where the transport is PCI: the
        configuration space, BARs and configuration ports; of registers these take the place of "read" and "write"
    ("wait", seconds) ("hold", operations)      time passes; the data plane does not run for so many operations
"""

from __future__ import annotations

from ast import literal_eval

from pyvmm.virtio import spec
from pyvmm.virtio.pci import REGISTERS as COMMON
from tests.support.virtiodriver import INDIRECT, NEXT, WRITE

RECORD = 32
LOW_END = 0x20000
HIGH, HIGH_END = 0x40000, 0x48000
"""RAM is [0, LOW_END) and [HIGH, HIGH_END), a hole between them."""
RINGS, TABLES, HEAP = 0x1000, 0x8000, 0xC000
"""Rings, then indirect tables, then buffers up to LOW_END."""
RING_SIZES = (16, 16, 4, 8, 16, 64, 16, 2, 1)

ADDRESSES = (
    *(0, 1, LOW_END - 16, LOW_END - 1, LOW_END, HIGH - 1, HIGH, HIGH_END - 16, HIGH_END - 1, HIGH_END),
    *(RINGS, RINGS + 16, RINGS + 256, RINGS + 258, RINGS + 296, TABLES, TABLES + 16, HEAP, HEAP + 64, HEAP + 4096),
    *(0xD0000000, 1 << 32, (1 << 32) + HEAP, 1 << 63, (1 << 64) - 16, (1 << 64) - 1),
)
PLACES = (LOW_END, HEAP + 1, HEAP, RINGS, LOW_END - 64, HIGH - 16, HIGH_END, HIGH, 1 << 32, (1 << 64) - 16)
"""Where a ring may be said to lie."""
LENGTHS = (
    *(0, 1, 15, 16, 17, 32, 511, 512, 513, 4096, LOW_END - HEAP, LOW_END, LOW_END + 1, 1 << 20),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 16, (1 << 32) - 1),
)
FLAGS = (0, NEXT, WRITE, NEXT | WRITE, INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE, 0xFFFF, 8, 0x8000)
SMALL = (0, 1, 2, 3, 4, 15, 16, 17, 63, 64, 255, 256, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)
WIDTHS = (4, 4, 4, 1, 2, 8, 3, 5, 7)
STATUSES = (0, 1, 3, 11, 15, 2, 4, 5, 7, 8, 9, 64, 79, 128, 129, 131, 139, 143, 255)
REGISTER_OFFSETS = range(0, 0x100, 4)
OUT_OF_TURN = (0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x94, 0xA0)
"""Offsets of registers that mean something, or nothing, by when they are written."""


class Draw:
    """Decisions made by bytes; zeros when they are used up."""

    def __init__(self, data):
        self._data = data
        self._at = 0

    def byte(self):
        at, self._at = self._at, self._at + 1
        return self._data[at] if at < len(self._data) else 0

    def number(self, size):
        return int.from_bytes(bytes(self.byte() for _ in range(size)), "little")

    def below(self, limit):
        return self.number(2 if limit > 256 else 1) % limit

    def pick(self, options):
        return options[self.byte() % len(options)]

    def rarely(self, share):
        """True for one value in `share`, never for zero."""
        return self.byte() >= 256 - 256 // share

    def value(self, edges, size=4):
        """One of `edges` most of the time, else any number of `size` bytes."""
        return self.number(size) if self.rarely(4) else self.pick(edges) & ((1 << 8 * size) - 1)

    def filling(self, length):
        """`length` bytes that are not all alike."""
        first, step = self.byte(), self.byte()
        pattern = bytes((first + step * number) & 0xFF for number in range(min(length, 64)))
        return (pattern * (length // 64 + 1))[:length]

    def cut(self, data):
        """`data` (bytes, or a number of them) in up to three pieces, as a driver may cut its buffers."""
        count = data if isinstance(data, int) else len(data)
        places = sorted({self.below(count + 1) for _ in range(self.pick((0, 0, 0, 1, 2)))})
        edges = list(zip([0, *places], [*places, count], strict=True))
        return [end - start if isinstance(data, int) else data[start:end] for start, end in edges]


class Case:
    """What happens to one device: `settings` for its subject, then `operations`."""

    __slots__ = ("device", "operations", "settings")

    def __init__(self, device, settings, operations):
        self.device = device
        self.settings = settings
        self.operations = operations

    def text(self, remark=""):
        """As a file that `parse` reads; `remark` comes first, as comments."""
        comments = [f"# {line}".rstrip() for line in remark.splitlines()]
        return "\n".join([*comments, self.device, repr(self.settings), *map(repr, self.operations)]) + "\n"

    @classmethod
    def parse(cls, text):
        device, settings, *operations = (line for line in text.splitlines() if line and not line.startswith("#"))
        return cls(device, literal_eval(settings), [literal_eval(operation) for operation in operations])


def decode(subject, data):
    """The case that `data` is for `subject`."""
    records = [Draw(data[at : at + RECORD]) for at in range(0, len(data), RECORD)] or [Draw(b"")]
    first = records[0]
    settings = subject.settings(first)
    settings["faults"] = _faults(first)
    operations = [] if first.rarely(16) else [_bring_up(subject, first)]
    operations += [] if first.rarely(2) else [("greet",)]
    polite = first.rarely(3)
    chosen = _OPERATIONS[subject.transport]
    operations += [chosen[draw.byte()](subject, draw) for draw in records[1:]]
    if polite:
        operations = [_sound(operation) for operation in operations if operation[0] in POLITE]
    return Case(subject.name, settings, operations)


POLITE = (
    "bring up",
    "greet",
    "chain",
    "host",
    "wait",
    "hold",
    "kick",
    "acknowledge",
    "flags",
    "used event",
    "read",
    "reset",
)
"""What a driver does that keeps to the rules of the ring: the deeper states are reached with such."""


def _sound(operation):
    if operation[0] == "bring up":
        return operation[:3]
    return (*operation[:5], (), operation[6]) if operation[0] == "chain" else operation


_RULES = (
    "delay=10ms",
    "delay=100ms",
    "error,rate=0.5",
    "short",
    "reorder=2",
    "lost,rate=0.3",
    "repeat=3",
    "delay=1ms,every=2",
)


def _faults(draw):
    count = draw.pick((0, 0, 0, 0, 0, 1, 1, 1, 2))
    return [f"*:{draw.pick(_RULES)}" for _ in range(count)]


def _features(draw):
    """Features of which the driver does not do what it should: accept those offered and no others; as bits."""
    dropped = 0
    if draw.rarely(3):
        dropped |= 1 << spec.F_RING_EVENT_IDX
    if draw.rarely(4):
        dropped |= 1 << spec.F_RING_INDIRECT_DESC
    if draw.rarely(5):
        dropped |= draw.number(3)
    if draw.rarely(32):
        dropped |= 1 << spec.F_VERSION_1
    return dropped


def _bring_up(subject, draw):
    features, size = _features(draw), draw.pick(RING_SIZES)
    return (
        ("bring up", features, size, *_spoilt_queue(subject, draw)) if draw.rarely(4) else ("bring up", features, size)
    )


def _spoilt_queue(subject, draw):
    """A queue and what the device is told wrong of it."""
    part = draw.pick(("size", "size", "descriptors", "driver", "device", "overlap", "misaligned"))
    value = draw.value((0, 3, 5, 512, 0x8000, 0x10000) if part == "size" else PLACES, 4 if part == "size" else 8)
    return draw.below(subject.queues + 1), part, value


def _greet(subject, draw):
    return ("greet",)


def _negotiate(subject, draw):
    return ("negotiate", _features(draw))


def _set_up(subject, draw):
    size, spoilt = draw.pick(RING_SIZES), draw.rarely(3)
    queue, part, value = _spoilt_queue(subject, draw)
    return ("set up", queue, size, part, value) if spoilt else ("set up", queue, size, "", 0)


def _chain(subject, draw):
    queue, readable, writable = subject.request(draw)
    layout = draw.pick(("direct", "direct", "indirect", "indirect", "mixed"))
    spoilt = _spoilt(draw) if draw.rarely(4) else ()
    if spoilt and spoilt[0].startswith("table"):
        layout = "indirect"
    return ("chain", queue, tuple(readable), tuple(writable), layout, spoilt, not draw.rarely(8))


_SPOILS = (
    *("gpa", "length", "flags", "next", "loop", "huge", "head", "twice", "swap", "nested"),
    *("table gpa", "table length", "table flags", "table next"),
)


def _spoilt(draw):
    what = draw.pick(_SPOILS)
    at = draw.byte()
    if what == "next" and draw.rarely(2):
        return (what, at, 0xFFFF)
    if what in ("gpa", "table gpa"):
        return (what, at, draw.value(ADDRESSES, 8))
    if what in ("length", "table length"):
        return (what, at, draw.value(LENGTHS))
    if what in ("flags", "table flags"):
        return (what, at, draw.value(FLAGS, 2))
    return (what, at, draw.value(SMALL, 2))


def _descriptor(subject, draw):
    queue, index = draw.below(subject.queues), draw.below(16)
    gpa, length = draw.value(ADDRESSES, 8), draw.value(LENGTHS)
    return ("descriptor", queue, index, gpa, length, draw.value(FLAGS, 2), draw.below(20))


def _available(subject, draw):
    return ("available", draw.below(subject.queues), draw.value((0, 1, 2, 3, 0, 1, 2, 15, 16, 17, 63, 64, 0xFFFF), 2))


def _ring_word(subject, draw):
    what = draw.pick(("index", "flags", "used event"))
    edges = {"index": (1, 2, 4, 16, 17, 0, 0xFFFF, 0x8000), "flags": (0, 1, 0xFFFE), "used event": SMALL}[what]
    return (what, draw.below(subject.queues), draw.value(edges, 2))


def _poke(subject, draw):
    gpa = draw.pick((RINGS, RINGS, TABLES, HEAP)) + draw.below(1024)
    return ("poke", gpa, draw.filling(draw.pick((1, 2, 4, 8, 16, 64))))


def _kick(subject, draw):
    return ("kick", draw.below(subject.queues) if not draw.rarely(4) else draw.value(SMALL))


COMMON_WIDTHS = {register.offset: register.width for register in COMMON}
PCI_PLACES = (
    *(("BAR 0", offset) for offset in (22, 24, 26, 28, 30) * 3),
    *(("BAR 0", offset) for offset in (*range(0, 62, 2), 21, 1, 64, 0xFFC, 0x1000, 0x1001, 0x2000, 0x2008, 0x2FFE)),
    *(("BAR 0", 0x3000 + offset) for offset in (0, 4, 8, 2, 0x7FC, 0xFFC, 0xFFF)),
    *(("BAR 1", offset) for offset in (*range(0, 48, 4), 48, 2, 0xFFC, 0x1000, 0x1004, 0x1008, 0x1FFC)),
    *(("space", offset) for offset in (*range(0, 0x40, 4), 5, 6, 0x3D, *range(0x40, 0xA8, 4), 0x94, 0xA0, 0xA0, 0xFC)),
    *(("port", offset) for offset in range(8)),
)
PCI_WIDTHS = {"BAR 0": WIDTHS, "BAR 1": (4, 8, 4, 1, 2, 3), "space": (4, 2, 1), "port": (4, 1, 2)}
PCI_VALUES = (
    *(0, 0xFFFFFFFF, 1, 2, 3, 0xFFFF, 0x8000, 0xC000, 0x4000, 6, 0x400, 0x406, 0xE0000000, 0xE0010000, 0xFEE00000),
    *(0xFEC00000, 0xD0000000, 4, 0x14, 0x1000, 0x3000, 0x80000800, 0x80000810, 0x80010000, 0xFEE01004, 15, 11),
)


def _pci(subject, draw):
    place, offset = draw.pick(PCI_PLACES)
    offset += draw.byte() if draw.rarely(32) and place.startswith("BAR") else 0
    size = draw.pick(PCI_WIDTHS[place])
    if place == "space" and offset % 4 + size > 4:
        size = 1
    if place == "BAR 0" and offset in COMMON_WIDTHS and not draw.rarely(3):
        size = COMMON_WIDTHS[offset]
    if draw.byte() & 1:
        return ("pci read", place, offset, size)
    return ("pci write", place, offset, size, draw.value(PCI_VALUES, size))


def _register(subject, draw):
    if subject.transport == "pci":
        return _pci(subject, draw)
    if draw.rarely(2):
        return ("write", draw.pick(OUT_OF_TURN), 4, draw.value((*SMALL, *ADDRESSES)))
    offset = draw.pick(REGISTER_OFFSETS) + (draw.byte() if draw.rarely(16) else 0)
    size = draw.pick(WIDTHS)
    if draw.byte() & 1:
        return ("read", offset, size)
    return ("write", offset, size, draw.value((*SMALL, *ADDRESSES), size))


def _config(subject, draw):
    if subject.transport == "pci":
        return _pci(subject, draw)
    offset = spec.MMIO_CONFIG + (draw.pick((0xEFF, 0xEFC, 0xF8, 0x3C)) if draw.rarely(3) else draw.below(64))
    size = draw.pick(WIDTHS)
    if draw.byte() & 1:
        return ("read", offset, size)
    offset = spec.MMIO_CONFIG + draw.pick(subject.writable_config) if draw.byte() & 1 else offset
    return ("write", offset, draw.pick((size, 1, 4)), draw.value((0, 1, 2, 0xFF), 1))


def _status(subject, draw):
    return ("status", draw.value(STATUSES, 1))


def _reset(subject, draw):
    return ("reset",)


def _acknowledge(subject, draw):
    return ("acknowledge",)


def _host(subject, draw):
    return ("host", *subject.host(draw))


def _wait(subject, draw):
    return ("wait", draw.pick((0.001, 0.005, 0.02, 0.1, 1.5, 60.0)))


def _hold(subject, draw):
    return ("hold", 1 + draw.below(6))


_WEIGHTS = (
    (_chain, 115),
    (_host, 32),
    (_bring_up, 8),
    (_greet, 2),
    (_wait, 12),
    (_kick, 8),
    (_register, 16),
    (_config, 8),
    (_hold, 10),
    (_descriptor, 8),
    (_available, 6),
    (_ring_word, 6),
    (_poke, 6),
    (_acknowledge, 4),
    (_set_up, 8),
    (_negotiate, 3),
    (_status, 2),
    (_reset, 2),
)
_MORE = {"mmio": {}, "pci": {_chain: 65, _register: 66}}
"""Where the transport itself is what is fuzzed, more of it."""
_OPERATIONS = {
    transport: [operation for operation, weight in _WEIGHTS for _ in range(more.get(operation, weight))]
    for transport, more in _MORE.items()
}
assert all(len(operations) == 256 for operations in _OPERATIONS.values())
