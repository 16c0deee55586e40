"""The console device with two ports: input, output that has to wait, and what both sides say of the ports."""

from __future__ import annotations

from struct import pack

from pyvmm.virtio import console, port, spec
from pyvmm.virtio.console import CONTROL_RECEIVE, CONTROL_TRANSMIT, EMERG_WR, VirtioConsole
from pyvmm.virtio.port import Port
from tests.fuzz.subjects.base import Subject

RECEIVE = (0, 4)
"""The ports' receive queues; the next one each is the transmit queue."""
EVENTS = {
    spec.CONSOLE_DEVICE_READY: "DEVICE_READY",
    spec.CONSOLE_PORT_READY: "PORT_READY",
    spec.CONSOLE_PORT_OPEN: "PORT_OPEN",
}
TOLD = {
    spec.CONSOLE_DEVICE_ADD: "DEVICE_ADD",
    spec.CONSOLE_CONSOLE_PORT: "CONSOLE_PORT",
    spec.CONSOLE_RESIZE: "RESIZE",
    spec.CONSOLE_PORT_OPEN: "PORT_OPEN",
    spec.CONSOLE_PORT_NAME: "PORT_NAME",
}


class Console(Subject):
    name = "console"
    modules = (console, port)
    queues = 6
    writable_config = (EMERG_WR, EMERG_WR, 0)
    greeting = (
        *[(CONTROL_RECEIVE, (), (64,))] * 4,
        *((CONTROL_TRANSMIT, (pack("<IHH", 0, spec.CONSOLE_DEVICE_READY, 1),), ()),),
        *((CONTROL_TRANSMIT, (pack("<IHH", number, spec.CONSOLE_PORT_READY, 1),), ()) for number in range(2)),
        *((CONTROL_TRANSMIT, (pack("<IHH", number, spec.CONSOLE_PORT_OPEN, 1),), ()) for number in (0, 1)),
        *[(CONTROL_RECEIVE, (), (64,))] * 4,
        (RECEIVE[0], (), (4096,)),
    )
    seeds = (
        (("chain", CONTROL_RECEIVE, (), (7,), "direct", (), True), ("greet",)),
        (
            ("greet",),
            ("chain", CONTROL_TRANSMIT, (pack("<IHH", 7, spec.CONSOLE_PORT_OPEN, 1),), (), "direct", (), True),
        ),
        (("greet",), ("chain", CONTROL_TRANSMIT, (b"short",), (), "direct", (), True)),
        (("greet",), ("host", "hold after", 1), ("chain", 1, (bytes(40000),), (), "direct", (), True)),
    )
    required = (
        *(f"driver: {event}" for event in (*EVENTS.values(), "another event", "no such port", "short message")),
        *(f"device: {event}" for event in (*TOLD.values(), "no room for a message")),
        *("input: received", "input: refused", "output: handed out", "output: held", "output: empty", "output: large"),
        *("output: emergency", "port: opened", "port: closed", "input: drained"),
    )

    def __init__(self, settings, kinds):
        self.kinds = kinds
        self.ports = [Port(name, self._output) for name in ("", "one")]
        for each in self.ports:
            each.on_open = lambda opened: kinds.add("port: opened" if opened else "port: closed")
            each.on_input_drained = lambda: kinds.add("input: drained")
        self.device = VirtioConsole(self.ports)
        self.device.native = settings.get("native", True)
        self._hold_after = 0
        self._heard = 0

    def _output(self, data):
        assert data or not self.device.live
        self.kinds.add("output: handed out" if self.device.plane.locked() else "output: emergency")
        if len(data) == console.PIECE:
            self.kinds.add("output: large")
        self._heard += len(data)
        if self._hold_after:
            self._hold_after -= 1
            if not self._hold_after:
                for each in self.ports:
                    each.hold()

    @staticmethod
    def settings(draw):
        return {"native": not draw.rarely(3)}

    @staticmethod
    def request(draw):
        number = draw.pick((0, 0, 1))
        what = draw.pick(("input", "output", "control", "listen", "input", "output", "control", "listen"))
        if what == "input":
            return RECEIVE[number], [], draw.cut(draw.pick((64, 1, 4096, 0)))
        if what == "output":
            data = draw.filling(draw.pick((10, 1, 300, 40000, 40000, 0)))
            return RECEIVE[number] + 1, draw.cut(data), [8] if draw.rarely(6) else []
        if what == "listen":
            return CONTROL_RECEIVE, [], draw.cut(draw.pick((64, 64, 8, 7, 0)))
        events = (0, 3, 6, 0, 3, 6, 0, 3, 6, 1, 4, 0xFFFF)
        where = number if not draw.rarely(12) else draw.pick((2, 32, 0xFFFFFFFF))
        message = pack("<IHH", where, draw.pick(events), draw.pick((1, 1, 1, 0, 2)))
        return CONTROL_TRANSMIT, draw.cut(message[: 8 if not draw.rarely(16) else draw.below(8)]), []

    @staticmethod
    def host(draw):
        what = draw.pick(
            ("input", "input", "input", "hold", "hold after", "hold after", "release", "connect", "resize")
        )
        if what == "input":
            return (what, draw.below(2), draw.pick((1, 10, 1000, 5000)))
        if what == "hold after":
            return (what, draw.pick((1, 1, 2)))
        if what == "connect":
            return (what, draw.below(2), bool(draw.byte() & 1))
        return (what, draw.below(2))

    def happen(self, what, number, *arguments):
        port = self.ports[number % 2]
        if what == "input":
            if port.receive(b"i" * arguments[0]) < arguments[0]:
                self.kinds.add("input: refused")
        elif what == "hold":
            port.hold()
        elif what == "hold after":
            self._hold_after = number
        elif what == "release":
            port.release()
        elif what == "connect":
            port.connect(*arguments)
        else:
            self.device.resize(80 + number, 25)

    def happened(self, sources):
        if any(each.held and each.chain is not None for each in self.ports):
            self.kinds.add("output: held")
        return []

    def prompt(self, queue):
        multiport = bool(self.device.features >> spec.CONSOLE_F_MULTIPORT & 1)
        if queue == CONTROL_TRANSMIT:
            return multiport
        port = self.ports[queue // 2 - 1 if queue > 1 else 0]
        return bool(queue & 1) and not port.held and (queue == 1 or multiport)

    def outcome(self, queue, request, written, answer):
        assert queue < 2 or self.device.features >> spec.CONSOLE_F_MULTIPORT & 1, "there is no such queue"
        if queue == CONTROL_TRANSMIT:
            return f"driver: {self._said(request)}"
        if queue == CONTROL_RECEIVE:
            assert not written or written >= 8, "a message in part"
            event = int.from_bytes(answer[4:6], "little")
            return f"device: {TOLD[event] if written else 'no room for a message'}"
        if queue in RECEIVE:
            assert answer[:written] == b"i" * written
            return "input: received" if written else ""
        assert not written
        return "" if request else "output: empty"

    def _said(self, request):
        if len(request) < 8:
            return "short message"
        number, event = int.from_bytes(request[:4], "little"), int.from_bytes(request[4:6], "little")
        if event in EVENTS and event != spec.CONSOLE_DEVICE_READY and number >= len(self.ports):
            return "no such port"
        return EVENTS.get(event, "another event")

    def calm(self):
        self._hold_after = 0
        for each in self.ports:
            each.release()

    def probe(self, driver):
        for number in range(9):
            driver.send(CONTROL_RECEIVE, [], [64 + number % 2])
        for event, numbers in ((spec.CONSOLE_DEVICE_READY, (0,)), (spec.CONSOLE_PORT_READY, (0, 1))):
            for number in numbers:
                driver.request(CONTROL_TRANSMIT, [pack("<IHH", number, event, 1)])
        for number, each in enumerate(self.ports):
            driver.request(CONTROL_TRANSMIT, [pack("<IHH", number, spec.CONSOLE_PORT_OPEN, 1)])
            assert each.open, f"port {number} is not open"
            heard = self._heard
            driver.request(RECEIVE[number] + 1, [b"out"])
            assert self._heard == heard + 3 or (number and not each.connected), f"port {number}: no output"
            each.receive(b"i")
            driver.run()
            assert driver.request(RECEIVE[number], [], [4])[1][:1] == b"i", f"port {number}: no input"
