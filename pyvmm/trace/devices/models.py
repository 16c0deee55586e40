"""The device models as they are made for a recording, and made again to play it back: each by a name, with its options.

Imports each model's module when it is asked for. What a device is connected to comes from `outside`; `load` gives a
module by its name, so that a test can put another version of one in its place.
"""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

from pyvmm import layout
from pyvmm.events import IrqLine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from pyvmm.memory import GuestMemory

    class Outside(Protocol):
        """A Recorder or a Player of `pyvmm.trace.devices.outside`."""

        def object(self, name: str) -> Any: ...

    Load = Callable[[str], Any]
    Options = dict[str, Any]


class Rig:
    """A device that is made: `devices`, what of it is on a bus, by name; `targets`, what the host may do with it."""

    def __init__(self, devices: dict[str, Any], targets: dict[str, Callable[..., Any]] | None = None) -> None:
        self.devices = devices
        self.targets = targets or {}
        self.clocked: list[tuple[Any, Any]] = []
        """Modules whose `time` is the outside's while it is used, and what it was before."""

    def clock(self, module: Any, clock: Callable[[], float]) -> None:
        """Let `module` ask `clock()` for the time instead of time.monotonic()."""
        self.clocked.append((module, module.time))
        module.time = SimpleNamespace(monotonic=clock)

    def close(self) -> None:
        """Give modules back their time."""
        for module, time in self.clocked:
            module.time = time


def make(model: str, outside: Outside, options: Options, memory: GuestMemory | None, load: Load = import_module) -> Rig:
    """The device. Raises KeyError for a model that is not in MODELS."""
    return MODELS[model](outside, options, memory, load)


# --- Platform devices -------------------------------------------------------------------------------------------------


def _serial(outside: Outside, options: Options, memory: GuestMemory | None, load: Load) -> Rig:
    module = load("pyvmm.devices.serial")
    serial = module.Serial(IrqLine(outside.object("irq")), outside.object("output"), waits=options.get("waits", True))
    serial.on_input_drained = outside.object("drained")
    return Rig({"serial": serial}, {"receive": serial.receive})


def _rtc(outside: Outside, options: Options, memory: GuestMemory | None, load: Load) -> Rig:
    ram = layout.ram_ranges(options["mem"])
    below, above = (sum(size for gpa, size in ram if (gpa >= layout.HOLE_END) == high) for high in (False, True))
    rtc = load("pyvmm.devices.rtc").Rtc(below, above, outside.object("clock"))
    return Rig({"rtc": rtc}, {"reset": rtc.reset})


def _pm(outside: Outside, options: Options, memory: GuestMemory | None, load: Load) -> Rig:
    module = load("pyvmm.devices.acpipm")
    types = (layout.ACPI_S5_SLEEP_TYPE, 0)
    pm = module.AcpiPm(IrqLine(outside.object("irq")), outside.object("off"), types, clock=outside.object("clock"))
    targets = {"press_power_button": pm.press_power_button, "raise_event": pm.raise_event, "reset": pm.reset}
    return Rig({"acpi-pm": pm}, targets)


def _i8042(outside: Outside, options: Options, memory: GuestMemory | None, load: Load) -> Rig:
    irq = IrqLine(outside.object("irq")) if options.get("irq") else None
    keyboard = load("pyvmm.devices.i8042").I8042(outside.object("reset"), irq)
    return Rig({"i8042": keyboard}, {"reset_controller": keyboard.reset})


def _one(module: str, kind: str, name: str, called: str) -> Callable[..., Rig]:
    """A device that is made of one function that it calls."""

    def made(outside: Outside, options: Options, memory: GuestMemory | None, load: Load) -> Rig:
        return Rig({name: getattr(load(f"pyvmm.devices.{module}"), kind)(outside.object(called))})

    return made


def _pci(outside: Outside, options: Options, memory: GuestMemory | None, load: Load) -> Rig:
    """The bridge and one function with two windows, a capability and MSI-X, whose decoded places are told outside."""
    config, bridge = load("pyvmm.pci.config"), load("pyvmm.pci.bridge").HostBridge()
    function = config.Function("function", 0x1AF4, 0x1042, 0x018000, 1, (0x1AF4, 0x42), pin=1)
    lock = function.lock

    class Window:
        """Of the second BAR; the first has MSI-X."""

        name, length = "window", 0x4000

        def __init__(self) -> None:
            self.lock = lock

    function.add_bar(0, Window())
    msix = load("pyvmm.pci.msix").Msix(function, 1, 3, outside.object("wires"), load("threading").Lock())
    msix.switched = outside.object("switched")
    function.add_capability(0x09, bytes((16, 1, 0, 0)), bytes((0, 0, 0xFF, 0)))
    function.commanded = outside.object("commanded")
    function.place(0, layout.PCI_WINDOW)
    function.on_decode(outside.object("decode"))
    bridge.plug(3, function)
    ports = load("pyvmm.devices.resetcontrol").AmongConfigPorts(bridge, _reset_control(outside, load))
    window = function.bars[1]
    return Rig(
        {"pci": ports, "msix": window},
        {"show_interrupt": function.show_interrupt, "fire": lambda vector: _under(msix._leaf, msix.fire, vector)},
    )


def _under(lock: Any, function: Callable[[int], None], vector: int) -> None:
    with lock:
        function(vector)


def _reset_control(outside: Outside, load: Load) -> Any:
    return load("pyvmm.devices.resetcontrol").ResetControl(outside.object("reset"))


# --- virtio -----------------------------------------------------------------------------------------------------------


def _virtio(module: str, build: Callable[..., tuple[Any, dict[str, Callable[..., Any]]]]) -> Callable[..., Rig]:
    """`build(outside, options, load)` gives the device, of `module`, and what the host may do with it, by name."""

    def made(outside: Outside, options: Options, memory: GuestMemory | None, load: Load) -> Rig:
        rig = Rig({})
        home = load(f"pyvmm.virtio.{module}")
        if hasattr(home, "time"):
            rig.clock(home, outside.object("clock"))
        device, rig.targets = build(outside, options, load)
        device.memory = memory
        device.native = False
        if options.get("transport", "mmio") == "pci":
            intx = IrqLine(outside.object("intx"))
            transport = load("pyvmm.virtio.pci").VirtioPci(device, outside.object("wires"), intx)
            bridge = load("pyvmm.pci.bridge").HostBridge()
            transport.function.place(0, layout.PCI_WINDOW)
            bridge.plug(1, transport.function)
            rig.devices |= {"pci": bridge, **{f"bar{number}": bar for number, bar in transport.function.bars.items()}}
        else:
            rig.devices["mmio"] = load("pyvmm.virtio.mmio").VirtioMmio(device, outside.object("interrupt"))
        rig.targets["ready"] = lambda fd, events: _guarded(device, device.ready, fd, events)
        rig.targets["due"] = lambda now: _guarded(device, device.run_due, now)
        rig.targets["deadline"] = device.next_deadline
        return rig

    return made


def _guarded(device: Any, work: Callable[..., None], *arguments: Any) -> None:
    """As a data plane does it."""
    with device.plane:
        if device.live:
            device.guarded(work, *arguments)


def _block(outside: Outside, options: Options, load: Load) -> tuple[Any, dict[str, Callable[..., Any]]]:
    kind = load("pyvmm.virtio.block").VirtioBlock
    device = kind(outside.object("disk"), serial=options.get("serial", "serial"), queues=options.get("queues", 1))
    return device, {"resize": device.resize}


def _net(outside: Outside, options: Options, load: Load) -> tuple[Any, dict[str, Callable[..., Any]]]:
    mac = bytes.fromhex(options.get("mac", "020000000001"))
    kind = load("pyvmm.virtio.net").VirtioNet
    device = kind(outside.object("network"), mac=mac, mtu=options.get("mtu"), spoof=options.get("spoof", True))
    return device, {"set_link": device.set_link}


def _console(outside: Outside, options: Options, load: Load) -> tuple[Any, dict[str, Callable[..., Any]]]:
    module, ports = load("pyvmm.virtio.port"), []
    host: dict[str, Callable[..., Any]] = {}
    for name in options.get("ports", ("",)):
        port = module.Port(name, outside.object(f"output:{name}"))
        port.on_input_drained, port.on_open = outside.object(f"drained:{name}"), outside.object(f"open:{name}")
        ports.append(port)
        host |= {f"{verb}:{name}": getattr(port, verb) for verb in ("receive", "connect", "hold", "release")}
    device = load("pyvmm.virtio.console").VirtioConsole(ports)
    return device, host | {"resize": device.resize}


def _rng(outside: Outside, options: Options, load: Load) -> tuple[Any, dict[str, Callable[..., Any]]]:
    kind = load("pyvmm.virtio.rng").VirtioRng
    return kind(source=outside.object("source"), rate=options.get("rate")), {}


def _balloon(outside: Outside, options: Options, load: Load) -> tuple[Any, dict[str, Callable[..., Any]]]:
    device = load("pyvmm.virtio.balloon").VirtioBalloon(size=options.get("size", 0))

    def told() -> list[tuple[str, int]]:
        """What the host sees of the balloon."""
        return [*sorted(device.statistics.items()), *sorted(device.counts.items()), ("actual", device.actual)]

    return device, {"set_target": device.set_target, "request_statistics": device.request_statistics, "told": told}


def _share(outside: Outside, options: Options, load: Load) -> tuple[Any, dict[str, Callable[..., Any]]]:
    return load("pyvmm.virtio.p9").Virtio9p(outside.object("server"), options.get("tag", "tag")), {}


def _vsock(outside: Outside, options: Options, load: Load) -> tuple[Any, dict[str, Callable[..., Any]]]:
    device = load("pyvmm.virtio.vsock").VirtioVsock(outside.object("sockets"), cid=options.get("cid", 3))
    return device, {"transport_reset": device.transport_reset}


MODELS: dict[str, Callable[..., Rig]] = {
    "serial": _serial,
    "rtc": _rtc,
    "acpi-pm": _pm,
    "i8042": _i8042,
    "port92": _one("port92", "Port92", "port92", "reset"),
    "resetcontrol": _one("resetcontrol", "ResetControl", "resetcontrol", "reset"),
    "pvpanic": _one("pvpanic", "PvPanic", "pvpanic", "panicked"),
    "debugexit": _one("debugexit", "DebugExit", "debugexit", "end"),
    "debugcon": _one("debugcon", "DebugCon", "debugcon", "output"),
    "pci": _pci,
    "virtio-block": _virtio("block", _block),
    "virtio-net": _virtio("net", _net),
    "virtio-console": _virtio("console", _console),
    "virtio-rng": _virtio("rng", _rng),
    "virtio-balloon": _virtio("balloon", _balloon),
    "virtio-9p": _virtio("p9", _share),
    "virtio-vsock": _virtio("vsock", _vsock),
}
