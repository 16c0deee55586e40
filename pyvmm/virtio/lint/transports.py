"""The transports of virtio as a driver lint sees through them: each access is judged, and then goes its way.

Imports the transports, registers and findings. Off the run path: whoever wants a lint makes one of these in the place
of `VirtioMmio` or `VirtioPci`.
"""

from __future__ import annotations

from pyvmm.pci.spec import COMMAND_MASTER
from pyvmm.virtio.lint.registers import DriverLint
from pyvmm.virtio.mmio import REGISTERS, VirtioMmio
from pyvmm.virtio.pci import COMMON_LENGTH, CONFIG, ISR, NOTIFY, NOTIFY_STRIDE, VirtioPci
from pyvmm.virtio.pci import REGISTERS as COMMON
from pyvmm.virtio.spec import MMIO_CONFIG, STATUS_DRIVER_OK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.registers import Register, RegisterMap
    from pyvmm.virtio.device import VirtioDevice
    from pyvmm.virtio.lint.findings import Findings

NAMES = {
    "device_feature_select": "DeviceFeaturesSel",
    "device_feature": "DeviceFeatures",
    "driver_feature_select": "DriverFeaturesSel",
    "driver_feature": "DriverFeatures",
    "device_status": "Status",
    "config_generation": "ConfigGeneration",
    "queue_select": "QueueSel",
    "queue_size": "QueueSize",
    "queue_enable": "QueueReady",
} | {
    f"queue_{part.lower()}_{short}": f"Queue{part}{half}"
    for part in ("Desc", "Driver", "Device")
    for half, short in (("Low", "lo"), ("High", "hi"))
}
"""MMIO's names of the registers over PCI, by which rules know them."""
NOTIFY_WIDTH = 2
"""Bytes (4.1.5.2.1, without NOTIFICATION_DATA)."""
LATER_FIELDS = 56
"""Offset in the common configuration from which on there are fields that go with features (4.1.4.3)."""


class LintedMmio(VirtioMmio):
    """VirtioMmio whose driver is judged."""

    __slots__ = ("lint",)

    def __init__(self, device: VirtioDevice, *wires: Any, findings: Findings) -> None:
        super().__init__(device, *wires)
        self.lint = DriverLint(device, self, findings, pci=False)

    def read(self, offset: int, size: int) -> int:
        value = super().read(offset, size)
        lint = self.lint
        if offset >= MMIO_CONFIG:
            lint.enter("")
            lint.config.access(offset - MMIO_CONFIG, size, write=False)
            return value
        register = _named(lint, REGISTERS, offset, size)
        if register is not None and "r" in register.access:
            lint.read(register.name, value)
        elif register is not None:
            lint.report("register-write-only")
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        lint = self.lint
        if offset >= MMIO_CONFIG:
            lint.enter("")
            lint.config.access(offset - MMIO_CONFIG, size, write=True)
            super().write(offset, size, value)
            return
        register = _named(lint, REGISTERS, offset, size)
        if register is not None and "w" not in register.access:
            lint.report("register-read-only")
            register = None
        if register is not None:
            lint.write(register.name, value)
        super().write(offset, size, value)
        if register is not None:
            lint.wrote(register.name, value)


class LintedPci(VirtioPci):
    """VirtioPci whose driver is judged."""

    __slots__ = ("lint",)

    def __init__(self, device: VirtioDevice, *wires: Any, findings: Findings) -> None:
        super().__init__(device, *wires)
        self.lint = DriverLint(device, self, findings, pci=True)

    def read(self, offset: int, size: int) -> int:
        value = super().read(offset, size)
        lint = self.lint
        if offset < ISR:
            register = _named(lint, COMMON, offset, size)
            if register is not None:
                lint.read(NAMES.get(register.name, register.name), value)
        elif CONFIG <= offset < NOTIFY:
            lint.enter("")
            lint.config.access(offset - CONFIG, size, write=False)
        elif offset == ISR:
            lint.enter("ISR status")
            if self._msix.enabled:
                lint.report("isr-with-msix")
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        lint = self.lint
        if offset >= NOTIFY:
            self._notified(offset - NOTIFY, size, value)
        elif offset >= CONFIG:
            lint.enter("")
            lint.config.access(offset - CONFIG, size, write=True)
        elif offset < ISR and (register := _named(lint, COMMON, offset, size)) is not None:
            self._write(register, offset, size, value)
            return
        super().write(offset, size, value)

    def _write(self, register: Register, offset: int, size: int, value: int) -> None:
        lint, name = self.lint, NAMES.get(register.name, register.name)
        if "w" not in register.access:
            lint.report("register-read-only")
        elif name.endswith("_vector"):
            lint.vector(name, value, self._msix.count)
        else:
            lint.write(name, value)
            if name == "Status" and value & STATUS_DRIVER_OK and not self.function.command & COMMAND_MASTER:
                lint.report("no-bus-master")
        super().write(offset, size, value)
        lint.wrote(name, value)

    def _notified(self, offset: int, size: int, value: int) -> None:
        lint = self.lint
        queue, rest = divmod(offset, NOTIFY_STRIDE)
        lint.enter("notification")
        if rest or queue >= len(self.device.queues):
            lint.report("notify-unknown", detail=f"at {offset:#x}")
            return
        if size != NOTIFY_WIDTH:
            lint.report("notify-width", queue=queue, detail=f"{size} bytes")
        elif value != queue:
            lint.report("notify-value", queue=queue, detail=f"{value}")
        lint.notify(queue)


def _named(lint: DriverLint, registers: RegisterMap, offset: int, size: int) -> Register | None:
    """The register that an access means, if it is as it must be."""
    for register in registers:
        if register.offset <= offset < register.offset + register.width:
            lint.enter(register.name)
            if (offset, size) == (register.offset, register.width):
                return register
            width = "notify-width" if register.name == "QueueNotify" else "register-width"
            lint.report(width, detail=f"{size} bytes at {offset:#x}")
            return None
    lint.enter("")
    if registers is not COMMON or not LATER_FIELDS <= offset < COMMON_LENGTH:
        lint.report("register-unknown", detail=f"{size} bytes at {offset:#x}")
    return None
