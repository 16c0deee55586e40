"""The entropy device, with a source that has nothing or fails when told to."""

from __future__ import annotations

from pyvmm.virtio import rng
from pyvmm.virtio.rng import LARGEST, VirtioRng
from tests.fuzz.subjects.base import Subject


class Rng(Subject):
    name = "rng"
    modules = (rng,)
    required = (
        *("request: filled", "request: part", "request: no room", "request: larger than is given"),
        *("source: none", "source: fails", "source: fewer", "source: more"),
    )

    def __init__(self, settings, kinds):
        self.kinds = kinds
        self.device = VirtioRng(rate=settings["rate"], source=self._source)
        self._mode = "works"

    def _source(self, count):
        if self._mode != "works":
            self.kinds.add(f"source: {self._mode}")
        if self._mode == "fails":
            raise RuntimeError("no entropy")
        return b"\x07" * {"works": count, "none": 0, "fewer": count // 2 or 1, "more": count + 5}[self._mode]

    @staticmethod
    def settings(draw):
        return {"rate": draw.pick((None, None, 1, 100, 1 << 20))}

    @staticmethod
    def request(draw):
        room = draw.pick((16, 64, 1, 0, 4096, 40000, LARGEST, LARGEST + 3000))
        return 0, draw.cut(draw.filling(4)) if draw.rarely(6) else [], draw.cut(room)

    @staticmethod
    def host(draw):
        return ("source", draw.pick(("works", "works", "none", "fails", "fewer", "more")))

    def happen(self, what, mode):
        self._mode = mode

    def prompt(self, queue):
        return False  # it waits for its source, or for its rate

    def outcome(self, queue, request, written, answer):
        if not answer:
            return "request: no room"
        assert 0 < written <= LARGEST
        if len(answer) > LARGEST:
            return "request: larger than is given"
        return "request: filled" if written == len(answer) else "request: part"

    def calm(self):
        self._mode = "works"

    def probe(self, driver):
        written, answer = driver.request(0, [], [1])
        assert (written, answer) == (1, b"\x07")
