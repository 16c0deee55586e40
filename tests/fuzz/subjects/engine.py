"""The queue engine and the status machine by themselves: a device that copies, or keeps what it gets."""

from __future__ import annotations

from pyvmm.virtio import chain, device, mmio, spec
from pyvmm.virtio.device import VirtioDevice
from tests.fuzz.subjects.base import Subject


class Echo(VirtioDevice):
    """Copies what is readable to what is writable; queue 1 keeps chains, the latest first to come back."""

    device_id = spec.ID_RNG
    queue_sizes = (64, 64)

    def __init__(self):
        super().__init__("echo")
        self.kept = []
        self.due = 0
        self.word = bytes(4)

    def features_valid(self, features):
        return not features & 1 or bool(features & 2)

    def device_features(self):
        return 0b111

    def config(self):
        return self.word + b"read only"

    def write_config(self, offset, data):
        if offset == 0 and len(data) == 4:
            self.word = data

    def serve(self, queue):
        for taken in queue.chains():
            if queue.index:
                self.kept.append(taken)
            else:
                self.answer(queue, taken)

        while queue.index and self.kept and self.due:
            self.due -= 1
            self.answer(queue, self.kept.pop())
        self.due = 0

    def answer(self, queue, taken):
        self.complete(queue, taken, taken.write(taken.read(0, taken.readable_length)))

    def discard(self):
        self.kept = []


class Engine(Subject):
    name = "engine"
    modules: tuple[object, ...] = (chain, device, mmio)
    queues = 2
    required: tuple[object, ...] = ("echo: all", "echo: short", "echo: nothing to write to", "echo: kept")

    def __init__(self, settings, kinds):
        self.kinds = kinds
        self.device = Echo()

    @staticmethod
    def request(draw):
        queue = draw.below(2)
        data = draw.filling(draw.pick((4, 4, 1, 16, 100, 0, 600)))
        return queue, draw.cut(data), draw.cut(draw.pick((64, 4, 0, 1, 700)))

    @staticmethod
    def host(draw):
        return draw.pick((("release", 1), ("release", 2), ("release", 64), ("configure", 1)))

    def happen(self, what, count):
        device = self.device
        if what == "configure":
            with device.lock:
                device.config_changed()
        elif device.kept:
            self.kinds.add("echo: kept")
            device.due = count
            device.ring(1)

    def prompt(self, queue):
        return queue == 0

    def outcome(self, queue, request, written, answer):
        assert answer[:written] == request[:written]
        if written == len(request):
            return "echo: all"
        return "echo: short" if answer else "echo: nothing to write to"

    def probe(self, driver):
        assert driver.request(0, [b"go", b"od"], [1, 9]) == (4, b"good" + b"\xa5" * 6)
