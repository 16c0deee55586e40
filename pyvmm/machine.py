"""The PC that every guest finds: two buses, the platform devices on them, and how each can end the run.

Imports the buses and the device models; no KVM: interrupts leave through a callable, so the whole machine also runs
under a scripted vCPU. The interrupt controllers and the PIT are KVM's own and do not appear here.
"""

from __future__ import annotations

from pyvmm import layout
from pyvmm.bus import PORTS, Bus
from pyvmm.devices.acpipm import AcpiPm
from pyvmm.devices.debugcon import DebugCon
from pyvmm.devices.debugexit import DebugExit
from pyvmm.devices.i8042 import I8042
from pyvmm.devices.port92 import Port92
from pyvmm.devices.pvpanic import PvPanic
from pyvmm.devices.resetcontrol import AmongConfigPorts, ResetControl
from pyvmm.devices.rtc import Rtc
from pyvmm.devices.serial import Serial
from pyvmm.errors import STATUS_PANIC
from pyvmm.events import IrqLine
from pyvmm.hot import Hot
from pyvmm.runloop import Outcome, debug_exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyvmm.bus import BusDevice


class Machine:
    """Buses `ports` and `mmio` with the platform devices attached.

    `serial` is COM1, the guest's console; `pm` has the power button.
    """

    __slots__ = ("_reset_control", "hot", "mmio", "pm", "ports", "rtc", "serial")

    def __init__(
        self,
        ram: Sequence[tuple[int, int]],
        interrupt: Callable[[int, bool], None],
        output: Callable[[bytes], None],
        end: Callable[[Outcome], None],
        hot: Hot | None = None,
    ) -> None:
        """Assemble the machine.

        `ram` is its memory as (gpa, length), which the CMOS reports; `interrupt(gsi, asserted)` sets the level of an
        interrupt line; `output` takes what the guest writes to its consoles; `end` ends the run; `hot` makes
        the windows through which the run loop in C sees devices, None: it sees none.
        """

        def line(gsi: int) -> IrqLine:
            return IrqLine(lambda asserted: interrupt(gsi, asserted))

        def reset(cause: str) -> Callable[[], None]:
            return lambda: end(Outcome("reboot", 0, f"the guest reset the machine through {cause}"))

        below_4g = sum(length for gpa, length in ram if gpa < layout.HOLE_END)
        above_4g = sum(length for gpa, length in ram if gpa >= layout.HOLE_END)
        self.hot = hot = hot or Hot()
        self.ports = Bus("port", PORTS, hot.ports)
        self.mmio = Bus("MMIO", 1 << 52, hot.mmio)
        consoles = hot.group()  # one: what the guest writes to them ends up in one place, in that order
        self.serial = Serial(line(layout.SERIAL_IRQ), output, waits=True, group=consoles)
        self.rtc = Rtc(below_4g, above_4g, group=hot.group())
        self.pm = AcpiPm(
            line(layout.SCI_IRQ),
            lambda: end(Outcome("power-off", 0, "the guest switched the machine off")),
            off_types=(layout.ACPI_S5_SLEEP_TYPE, 0),
        )
        self._reset_control = ResetControl(reset("port 0xcf9"))
        keyboard = I8042(reset("the i8042 keyboard controller"))
        attach = self.ports.attach
        attach(layout.SERIAL_PORT, 8, self.serial)
        attach(layout.CMOS_PORT, 2, self.rtc)
        attach(layout.I8042_DATA_PORT, 1, keyboard.data_port)
        attach(layout.I8042_COMMAND_PORT, 1, keyboard.command_port)
        attach(layout.PORT_92, 1, Port92(reset("port 0x92")))
        attach(layout.RESET_CONTROL_PORT, 1, self._reset_control)
        attach(layout.ACPI_PM_PORT, layout.ACPI_PM_PORTS, self.pm)
        attach(
            layout.PVPANIC_PORT, 1, PvPanic(lambda: end(Outcome("panic", STATUS_PANIC, "the guest's kernel panicked")))
        )
        attach(layout.DEBUG_EXIT_PORT, 4, DebugExit(lambda value: end(debug_exit(value))))
        attach(layout.DEBUG_CONSOLE_PORT, 1, DebugCon(output, "debugcon", consoles))
        attach(layout.FIRMWARE_DEBUG_PORT, 1, DebugCon(output, "firmware-debugcon", consoles))
        self.ports.ignore(layout.POST_CODE_PORT, hot.window(0, 1, 1))

    def add_pci(self, bridge: BusDevice) -> None:
        """Let `bridge` answer at the 8 ports of configuration mechanism 1, but for the reset control register's byte.

        Once at most, before the guest runs. Without it a guest finds nothing there, and so no PCI.
        """
        ports = AmongConfigPorts(bridge, self._reset_control)
        self.ports.detach(layout.RESET_CONTROL_PORT)
        self.ports.attach(layout.PCI_CONFIG_PORT, layout.PCI_CONFIG_PORTS, ports)
