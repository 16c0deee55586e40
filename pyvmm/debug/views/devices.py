"""Every device on the buses: where it is, its registers by name, and bit by bit.

Imports render, the bus, virtio's transports, the names of features and of configuration fields.
"""

from __future__ import annotations

from pyvmm.bus import Later
from pyvmm.debug import render
from pyvmm.virtio.configspace import FIELDS
from pyvmm.virtio.featurenames import feature_names
from pyvmm.virtio.transport import Transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from pyvmm.debug.views.subject import Subject
    from pyvmm.registers import Register
    from pyvmm.virtio.device import VirtioDevice

SHOWN = 64
"""Bytes shown of a field."""


class Found:
    """A device at one or more places of one bus; `models` are what has registers there."""

    def __init__(self, name: str, space: str, made: bool) -> None:
        self.name = name
        self.space = space
        self.made = made
        self.places: list[tuple[int, int]] = []
        self.models: list[Any] = []

    @property
    def where(self) -> str:
        return ", ".join(
            f"{base:#x}" + (f"-{base + length - 1:#x}" if length > 1 else "") for base, length in self.places
        )


def devices(vm: Subject) -> list[str]:
    """A device's places, registers and state in words; one that no guest has touched has none yet."""
    lines = []
    for found in _devices(vm):
        lines.append(f"{found.name} at {found.space} {found.where}" + ("" if found.made else ": not used so far"))
        for model in found.models:
            lines += [f"  {register.describe(value)}" for register, value in _registers(model)]
            if isinstance(model, Transport):
                lines += [f"  {line}" for line in _virtio(model.device)]
    return lines


def devices_data(vm: Subject) -> list[dict[str, Any]]:
    """The same for programs."""
    return [_data(found) for found in _devices(vm)]


def _data(found: Found) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": found.name,
        "space": found.space,
        "places": [{"base": hex(base), "length": length} for base, length in found.places],
        "used": found.made,
        "registers": [
            render.register_dict(register, value) for model in found.models for register, value in _registers(model)
        ],
    }
    for model in found.models:
        if isinstance(model, Transport):
            device = model.device
            data["offered"] = feature_names(device.device_id, device.offered)
            data["features"] = feature_names(device.device_id, device.features)
            data["configuration"] = _configuration(device)
            data["error"] = device.error or None
    return data


def _devices(vm: Subject) -> list[Found]:
    found: dict[tuple[str, str], Found] = {}
    for space, bus in (("port", vm.machine.ports), ("gpa", vm.machine.mmio)):
        for base, length, placed in bus.placed():
            device = placed.made if isinstance(placed, Later) else placed
            one = found.setdefault((space, placed.name), Found(placed.name, space, device is not None))
            one.places.append((base, length))
            for model in () if device is None else getattr(device, "models", (device,)):
                if all(model is not other for other in one.models):
                    one.models.append(model)
    return list(found.values())


def _registers(model: Any) -> list[tuple[Register, int]]:
    """A device's registers, none of which is read by looking; [] for one that does not tell."""
    if not hasattr(model, "peek"):
        return []
    with model.lock:
        return list(model.peek())


def _virtio(device: VirtioDevice) -> Iterator[str]:
    yield f"driver: {'live' if device.live else 'not live'}" + (f"; {device.error}" if device.error else "")
    chosen = feature_names(device.device_id, device.features)
    left = feature_names(device.device_id, device.offered & ~device.features)
    yield f"features: {' '.join(chosen) or 'none negotiated'}"
    if left:
        yield f"offered, not taken: {' '.join(left)}"
    fields = [f"{name} {value}" for name, value in _configuration(device).items()]
    if fields:
        yield f"configuration: {', '.join(fields)}"


def _configuration(device: VirtioDevice) -> dict[str, int | str]:
    """The fields of its configuration space that are there: numbers, or bytes in hexadecimal digits."""
    config = device.config()
    found: dict[str, int | str] = {}
    for field in FIELDS.get(device.device_id, ()):
        raw = config[field.offset : field.offset + field.width * field.count][:SHOWN]
        if raw and (field.feature is None or device.offered >> field.feature & 1):
            found[field.name] = int.from_bytes(raw, "little") if field.count == 1 else raw.hex(" ")
    return found
