"""The virtqueues: where their rings are, how far driver and device have come, and what is in flight.

Imports subject and errors. After virtio 1.3, 2.7. Indices are read once, each for itself: a data plane may move on
meanwhile, as it does in a VM whose vCPUs alone stand still.
"""

from __future__ import annotations

from pyvmm.errors import GuestMemoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.debug.views.subject import Subject


def queues(vm: Subject) -> list[str]:
    """A line or two for each queue of each virtio device."""
    lines = []
    for device in vm.virtio_devices:
        state = "live" if device.live else "not live"
        lines.append(f"{device.name}: {state}" + (f"; {device.error}" if device.error else ""))
        for queue in device.queues:
            found = _data(vm, queue)
            lines.append(f"  queue {queue.index}: " + (_text(found) if queue.ready else "not enabled"))
            if queue.ready:
                lines.append(
                    f"    descriptors {found['descriptors']}, available ring {found['driver']}, "
                    f"used ring {found['device']}"
                )
    return lines or ["there are no virtio devices"]


def _text(found: dict[str, Any]) -> str:
    return (
        f"size {found['size']}, {found['in_flight']} in flight, {found['waiting']} waiting; "
        f"available {found['available']}, used {found['used']}"
        + (", no interrupts wanted" if found["no_interrupt"] else "")
    )


def queues_data(vm: Subject) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "name": device.name,
            "live": device.live,
            "error": device.error or None,
            "queues": [_data(vm, queue) for queue in device.queues],
        }
        for device in vm.virtio_devices
    ]


def _data(vm: Subject, queue: Any) -> dict[str, Any]:
    """`waiting` are chains that the driver has made available and the device has not taken."""
    found: dict[str, Any] = {"index": queue.index, "ready": queue.ready, "size": queue.size, "max_size": queue.max_size}
    found |= {name: hex(getattr(queue, name)) for name in ("descriptors", "driver", "device")}
    if not queue.ready:
        return found
    taken = queue.taken_index
    available, used = _u16(vm, queue.driver + 2), _u16(vm, queue.device + 2)
    return found | {
        "available": available,
        "used": used,
        "taken": taken,
        "waiting": None if available is None else available - taken & 0xFFFF,
        "in_flight": queue.in_flight,
        "no_interrupt": bool((_u16(vm, queue.driver) or 0) & 1),
    }


def _u16(vm: Subject, gpa: int) -> int | None:
    try:
        return vm.memory.read_u16(gpa)
    except GuestMemoryError:
        return None
