"""Saving a virtio device together with its queues and its transport, and restoring it into a new one.

Imports queue, spec and state. Whoever saves holds the device's `lock` and `plane`: no request is being served. Chains
that have been taken and not given back are not saved, but taken again: the device begins anew with their requests, of
which nothing was shown to the driver yet.
"""

from __future__ import annotations

from pyvmm.state import FLAG, U8, U16, U32, U64, StateError, Text, judged, saved
from pyvmm.virtio.queue import QueueError
from pyvmm.virtio.spec import STATUS_DRIVER_OK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.state import Kind
    from pyvmm.virtio.device import VirtioDevice
    from pyvmm.virtio.queue import Virtqueue
    from pyvmm.virtio.transport import Transport

_DEVICE: dict[str, Kind] = {
    "features": U64,
    "_driver_features": U64,
    "_status": U8,
    "_broken": FLAG,
    "error": Text(),
    "config_generation": U32,
}
_RINGS: dict[str, Kind] = dict.fromkeys(("descriptors", "driver", "device"), U64)
_QUEUE: dict[str, Kind] = {
    "ready": FLAG,
    "size": U32,
    **_RINGS,
    "_next_avail": U16,
    "_next_used": U16,
    "_notified": U16,
}


def save_device(device: VirtioDevice, transport: Transport) -> dict[str, Any]:
    """The state of `device`. Raises StateError where it cannot be saved."""
    if device.faults is not None:
        raise StateError(f"{device.name}: a VM with faults on purpose cannot be saved yet")
    return {
        "kind": device.device_id,
        "common": saved(device, _DEVICE),
        "queues": [_save_queue(device, queue) for queue in device.queues],
        "own": device.save(),
        "transport": transport.save(),
    }


def _save_queue(device: VirtioDevice, queue: Virtqueue) -> dict[str, Any]:
    state = saved(queue, _QUEUE)
    if queue.ready:
        position = queue.position
        if position is None:
            raise StateError(f"{device.name}: queue {queue.index} has a request in hand that cannot be saved")
        state["next_avail"] = position
    return state


def restore_device(device: VirtioDevice, transport: Transport, state: Any) -> None:
    """Be as `state` says. `device` has just been made, and has its memory. Raises StateError.

    Afterwards every queue is to be served as if the driver had rung, and the driver reminded of what is pending: that
    is what a data plane does that resumes.
    """
    name = device.name
    if type(state) is not dict or state.keys() != {"kind", "common", "queues", "own", "transport"}:
        raise StateError(f"{name}: is not the state of a virtio device")
    if state["kind"] != device.device_id:
        raise StateError(f"{name}: is the state of a virtio device of type {state['kind']} (expected another)")
    common = judged(name, state["common"], _DEVICE)
    queues = state["queues"]
    if type(queues) is not list or len(queues) != len(device.queues):
        raise StateError(f"{name}: the snapshot's device has another number of queues than this one")
    missing = common["features"] & ~device.offered
    if missing:
        raise StateError(f"{name}: the driver uses features {missing:#x}, which this device does not have here")
    for attribute, value in common.items():
        setattr(device, attribute, value)
    for queue, of_queue in zip(device.queues, queues, strict=True):
        _restore_queue(device, queue, judged(f"{name}: queue {queue.index}", of_queue, _QUEUE))
    if device.status & STATUS_DRIVER_OK:
        device.activate()
    device.restore(state["own"])
    transport.restore(state["transport"])


def _restore_queue(device: VirtioDevice, queue: Virtqueue, state: dict[str, Any]) -> None:
    ready = state.pop("ready")
    for attribute in ("size", *_RINGS):
        setattr(queue, attribute, state.pop(attribute))
    if ready:
        assert device.memory is not None
        problem = ""
        try:
            queue.enable(device.memory, device.features)
        except QueueError as error:
            problem = str(error)
        if problem:  # out here no traceback holds the guest's memory, which is closed next
            raise StateError(f"{device.name}: {problem}")
        for attribute, value in state.items():
            setattr(queue, attribute, value)
