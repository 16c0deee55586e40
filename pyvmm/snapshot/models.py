"""Which of a machine's models a snapshot has, by name. Imports state."""

from __future__ import annotations

from pyvmm.state import StateError, Stateful

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvmm.attach import VirtioDevices
    from pyvmm.machine import Machine


def models(machine: Machine, virtio: VirtioDevices | None) -> dict[str, Stateful]:
    """What is on the buses, each thing once, but for virtio's. Raises StateError for what cannot be saved."""
    theirs: set[int] = set()
    for _, transport in () if virtio is None else virtio.saved_with():
        theirs.update(map(id, transport.windows))
    found: dict[str, Stateful] = {}
    for model in _on(machine):
        if id(model) in theirs:
            continue
        if not isinstance(model, Stateful) or model.STATE is None:
            name = getattr(model, "name", type(model).__name__)
            raise StateError(f"a VM with the device {name!r} cannot be saved: its class says nothing of its state")
        name = model.name  # type: ignore[attr-defined]
        if found.setdefault(name, model) is not model:
            raise StateError(f"two devices are called {name!r}: such a VM cannot be saved")
    return found


def _on(machine: Machine) -> Iterator[object]:
    for bus in (machine.ports, machine.mmio):
        for _, _, device in bus.ranges():
            yield from getattr(device, "models", (device,))
