"""The memory balloon, in a memory that takes down what is given back, and a host that refuses it when told to."""

from __future__ import annotations

from struct import iter_unpack, pack

from pyvmm.virtio import balloon, spec
from pyvmm.virtio.balloon import DEFLATE, HINTS, INFLATE, PAGE, REPORTING, STATISTICS, TAGS, VirtioBalloon
from tests.fuzz.guard import RANGES
from tests.fuzz.subjects.base import Subject

PAGES = tuple((base + edge) // PAGE + off for base, size in RANGES for edge, off in ((0, 0), (size, -1), (size, 0)))
TOLD = {REPORTING: "reported", HINTS: "reported", INFLATE: "inflated", DEFLATE: "deflated"}


class Given:
    """Stands between the device and its memory. Nothing is really given back: the rings are there, too."""

    def __init__(self, memory, subject):
        self._memory = memory
        self._subject = subject

    def __getattr__(self, name):
        return getattr(self._memory, name)

    def discard(self, gpa, length):
        assert length > 0 and gpa >= 0
        if self._subject.refuses:
            raise OSError(12, "Cannot allocate memory")
        inside = 0
        for base, size in RANGES:
            start, end = max(gpa, base), min(gpa + length, base + size)
            start, end = -(-start // PAGE) * PAGE, end // PAGE * PAGE
            inside += max(0, end - start)
        self._subject.given += inside // PAGE
        return inside


class Device(VirtioBalloon):
    """With such a memory, whoever sets it."""

    subject: object = None

    def __setattr__(self, name, value):
        super().__setattr__(name, Given(value, self.subject) if name == "memory" and value is not None else value)


class Balloon(Subject):
    name = "balloon"
    modules = (balloon,)
    queues = 5
    writable_config = (4, 5, 7, 0)
    greeting = ((STATISTICS, (pack("<HQHQ", 4, 1, 5, 2),), ()),)
    seeds = (
        (("chain", INFLATE, (pack("<4I", 0, 1, 0xFFFFFFFF, 40),), (), "direct", (), True),),
        (("chain", STATISTICS, (bytes(10),), (), "direct", (), True),) * 3,
        (("host", "refuses", True), ("chain", REPORTING, (), (PAGE * 2,), "direct", (), True)),
    )
    required = (
        *(f"pages: {what}" for what in ("inflated", "deflated", "reported", "ignored", "refused")),
        *("statistics: told", "statistics: asked for", "told: the host refuses"),
    )

    def __init__(self, settings, kinds):
        self.kinds = kinds
        self.refuses = False
        self.given = 0
        self._ask = False
        self.device = Device(
            interval=settings["interval"],
            reporting=settings["reporting"],
            report=lambda _: kinds.add("told: the host refuses"),
        )
        self.device.subject = self
        self._before = dict(self.device.counts)

    @staticmethod
    def settings(draw):
        return {"interval": draw.pick((None, None, 0.05, 5.0)), "reporting": not draw.rarely(8)}

    @staticmethod
    def request(draw):
        queue = draw.pick((INFLATE, INFLATE, DEFLATE, STATISTICS, REPORTING, HINTS, REPORTING))
        if queue in (REPORTING, HINTS):
            return queue, [b"odd"] if draw.rarely(8) else [], [draw.pick((PAGE, 2 * PAGE, 3 * PAGE, 100, 1))]
        if queue == STATISTICS:
            entries = [pack("<HQ", draw.pick((*TAGS, 10, 0xFFFF)), draw.number(8)) for _ in range(draw.below(12))]
            return queue, draw.cut(b"".join(entries) + bytes(draw.pick((0, 0, 0, 9)))), []
        numbers = [draw.pick(PAGES) if draw.rarely(3) else draw.below(40) for _ in range(draw.below(20))]
        numbers += [0xFFFFFFFF] if draw.rarely(4) else []
        data = pack(f"<{len(numbers)}I", *numbers) + bytes(draw.pick((0, 0, 0, 3)))
        return queue, draw.cut(data), [8] if draw.rarely(8) else []

    @staticmethod
    def host(draw):
        return draw.pick(
            (("target", 0), ("target", 1 << 16), ("ask",), ("refuses", True), ("refuses", False), ("ask",))
        )

    def happen(self, what, *arguments):
        if what == "target":
            self.device.set_target(arguments[0])
        elif what == "refuses":
            self.refuses = arguments[0]
        elif self.device.live:
            self._ask = True

    def happened(self, sources):
        """The device has none; but here is the data plane's turn, in which another thread may ask."""
        self._count()
        ask, self._ask = self._ask, False
        if ask:
            self.kinds.add("statistics: asked for")
            self.device.request_statistics()
        return []

    def _count(self):
        for name, count in self.device.counts.items():
            assert count >= self._before[name]
            if count != self._before[name]:
                self.kinds.add(f"pages: {name}", count - self._before[name])
        self._before = dict(self.device.counts)

    def prompt(self, queue):
        return queue in (INFLATE, DEFLATE) or (
            queue in (HINTS, REPORTING) and bool(self.device.features >> spec.BALLOON_F_REPORTING & 1)
        )

    def outcome(self, queue, request, written, answer):
        assert written == 0 and answer == b"\xa5" * len(answer), "nothing is written to the driver"
        if queue == STATISTICS:
            return "statistics: told"
        self._count()
        return f"request: {TOLD[queue]}"

    def calm(self):
        self.refuses = False

    def probe(self, driver):
        before = self.given
        assert driver.request(INFLATE, [pack("<3I", 1, 3, 2)]) == (0, b"")
        assert self.given == before + 3
        entries = pack("<HQHQ", 4, 77, 99, 1)
        driver.send(STATISTICS, [entries])
        assert self.device.statistics == {TAGS[tag]: value for tag, value in iter_unpack("<HQ", entries) if tag in TAGS}
