"""The PC that every guest finds: two buses, the platform devices on them, and how each can end the run.

Imports the buses, and each device model when the guest, or somebody else, first asks for that device; no KVM:
interrupts leave through a callable, so the whole machine also runs under a scripted vCPU. The interrupt controllers and
the PIT are KVM's own and do not appear here.
"""

from __future__ import annotations

import time

from pyvmm import layout
from pyvmm.bus import PORTS, Bus, Later
from pyvmm.errors import STATUS_PANIC
from pyvmm.events import IrqLine
from pyvmm.hot import Hot
from pyvmm.runloop import Outcome, debug_exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from pyvmm.bus import BusDevice
    from pyvmm.devices.acpipm import AcpiPm
    from pyvmm.devices.i8042 import I8042
    from pyvmm.devices.resetcontrol import ResetControl
    from pyvmm.devices.rtc import Rtc
    from pyvmm.devices.serial import Serial

    Tap = Callable[[str, str, Any], Any]
    """tap(device, name, function): `function` itself, or what does as it does and keeps what passes."""


def _untapped(device: str, name: str, function: Any) -> Any:
    return function


class Machine:
    """Buses `ports` and `mmio` with the platform devices attached; `hot` and `interrupt` as they were given."""

    __slots__ = ("_keyboard", "_pm", "_reset_control", "_rtc", "_serial", "_tap", "hot", "interrupt", "mmio", "ports")

    def __init__(
        self,
        ram: Sequence[tuple[int, int]],
        interrupt: Callable[[int, bool], None],
        output: Callable[[bytes], None],
        end: Callable[[Outcome], None],
        hot: Hot | None = None,
        input_ready: Callable[[], None] | None = None,
        tap: Tap = _untapped,
    ) -> None:
        """Assemble the machine.

        `ram` is its memory as (gpa, length), which the CMOS reports; `interrupt(gsi, asserted)` sets the level of an
        interrupt line; `output` takes what the guest writes to its consoles; `end` ends the run; `hot` makes
        the windows through which the run loop in C sees devices, None: it sees none. `input_ready()` is called when
        `receive`, having taken less than it was given, would take more. What devices call, and what is done to them
        from outside, goes through `tap`.
        """

        def reset(cause: str) -> Callable[[], None]:
            return lambda: end(Outcome("reboot", 0, f"the guest reset the machine through {cause}"))

        self.interrupt = interrupt
        self._tap = tap
        self._keyboard: I8042 | None = None
        self.hot = hot = hot or Hot()
        self.ports = Bus("port", PORTS, hot.ports)
        self.mmio = Bus("MMIO", 1 << 52, hot.mmio)
        consoles = hot.group()  # one: what the guest writes to them ends up in one place, in that order
        clock = hot.group()

        def serial() -> Serial:
            from pyvmm.devices.serial import Serial

            out = tap("serial", "output", output)
            made = Serial(self._line(layout.SERIAL_IRQ), out, waits=True, group=consoles)
            made.on_input_drained = input_ready
            return made

        def rtc() -> Rtc:
            from pyvmm.devices.rtc import Rtc

            below_4g = sum(length for gpa, length in ram if gpa < layout.HOLE_END)
            above_4g = sum(length for gpa, length in ram if gpa >= layout.HOLE_END)
            return Rtc(below_4g, above_4g, tap("rtc", "clock", time.time), group=clock)

        def pm() -> AcpiPm:
            from pyvmm.devices.acpipm import AcpiPm

            def off() -> None:
                end(Outcome("power-off", 0, "the guest switched the machine off"))

            tick = tap("acpi-pm", "clock", time.monotonic)
            types = (layout.ACPI_S5_SLEEP_TYPE, 0)
            return AcpiPm(self._line(layout.SCI_IRQ), tap("acpi-pm", "off", off), off_types=types, clock=tick)

        def keyboard() -> I8042:
            if self._keyboard is None:
                from pyvmm.devices.i8042 import I8042

                self._keyboard = I8042(tap("i8042", "reset", reset("the i8042 keyboard controller")))
            return self._keyboard

        def port92() -> BusDevice:
            from pyvmm.devices.port92 import Port92

            return Port92(tap("port92", "reset", reset("port 0x92")))

        def reset_control() -> ResetControl:
            from pyvmm.devices.resetcontrol import ResetControl

            return ResetControl(tap("resetcontrol", "reset", reset("port 0xcf9")))

        def pvpanic() -> BusDevice:
            from pyvmm.devices.pvpanic import PvPanic

            told = tap(
                "pvpanic", "panicked", lambda: end(Outcome("panic", STATUS_PANIC, "the guest's kernel panicked"))
            )
            return PvPanic(told)

        def debugexit() -> BusDevice:
            from pyvmm.devices.debugexit import DebugExit

            return DebugExit(tap("debugexit", "end", lambda value: end(debug_exit(value))))

        def debugcon(name: str) -> BusDevice:
            from pyvmm.devices.debugcon import DebugCon

            return DebugCon(tap(name, "output", output), name, consoles)

        self._serial = Later("serial", serial)
        self._rtc = Later("rtc", rtc)
        self._pm = Later("acpi-pm", pm)
        self._reset_control = Later("resetcontrol", reset_control)
        attach = self.ports.attach
        attach(layout.SERIAL_PORT, 8, self._serial)
        attach(layout.CMOS_PORT, 2, self._rtc)
        attach(layout.I8042_DATA_PORT, 1, Later("i8042", lambda: keyboard().data_port))
        attach(layout.I8042_COMMAND_PORT, 1, Later("i8042", lambda: keyboard().command_port))
        attach(layout.PORT_92, 1, Later("port92", port92))
        attach(layout.RESET_CONTROL_PORT, 1, self._reset_control)
        attach(layout.ACPI_PM_PORT, layout.ACPI_PM_PORTS, self._pm)
        attach(layout.PVPANIC_PORT, 1, Later("pvpanic", pvpanic))
        attach(layout.DEBUG_EXIT_PORT, 4, Later("debugexit", debugexit))
        attach(layout.DEBUG_CONSOLE_PORT, 1, Later("debugcon", lambda: debugcon("debugcon")))
        attach(layout.FIRMWARE_DEBUG_PORT, 1, Later("firmware-debugcon", lambda: debugcon("firmware-debugcon")))
        self.ports.ignore(layout.POST_CODE_PORT, hot.window(0, 1, 1))

    def _line(self, gsi: int) -> IrqLine:
        return IrqLine(lambda asserted: self.interrupt(gsi, asserted))

    @property
    def serial(self) -> Serial:
        """COM1, the guest's console."""
        device: Serial = self._serial.get()
        return device

    @property
    def rtc(self) -> Rtc:
        """The clock, and the CMOS memory."""
        device: Rtc = self._rtc.get()
        return device

    @property
    def pm(self) -> AcpiPm:
        """ACPI's fixed hardware, which has the power button."""
        device: AcpiPm = self._pm.get()
        return device

    def receive(self, data: bytes) -> int:
        """Input for the guest's console; returns how many bytes it took."""
        taken: int = self._tap("serial", "receive", self.serial.receive)(data)
        return taken

    def press_power_button(self) -> None:
        """Ask the guest to shut down."""
        self._tap("acpi-pm", "press_power_button", self.pm.press_power_button)()

    def add_pci(self, bridge: BusDevice) -> None:
        """Let `bridge` answer at the 8 ports of configuration mechanism 1, but for the reset control register's byte.

        Once at most, before the guest runs. Without it a guest finds nothing there, and so no PCI.
        """
        from pyvmm.devices.resetcontrol import AmongConfigPorts

        ports = AmongConfigPorts(bridge, self._reset_control.get())
        self.ports.detach(layout.RESET_CONTROL_PORT)
        self.ports.attach(layout.PCI_CONFIG_PORT, layout.PCI_CONFIG_PORTS, ports)
