"""What a VM was made of, as plain values, and made again from them.

Imports config, hardware and errors. The classes judge what they are made of themselves.
"""

from __future__ import annotations

from pyvmm.config import AGENT_PORTS, VmConfig
from pyvmm.errors import LoadError, UsageError
from pyvmm.hardware import MAC_LENGTH, Balloon, Disk, Net, Port, Rng, Share, Vsock
from pyvmm.state import FLAG, SECONDS, U64, Bytes, Maybe, Several, StateError, Text, judged, saved

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.state import Kind

_PARTS: dict[str, tuple[type, bool]] = {
    "disks": (Disk, True),
    "nets": (Net, True),
    "ports": (Port, True),
    "rng": (Rng, False),
    "shares": (Share, True),
    "vsock": (Vsock, False),
    "balloon": (Balloon, False),
}
"""Settings that are objects: of which class, and whether there are several."""
_PLAIN: dict[str, Kind] = {
    **dict.fromkeys(("kernel", "kernel_format", "kernel_entry", "cpu", "on_panic", "memory_backing"), Text()),
    **dict.fromkeys(("transport", "name", "datapath", "exits"), Text()),
    "append": Text(1 << 20),
    **dict.fromkeys(("flat_mode", "initrd", "symbols"), Maybe(Text())),
    **dict.fromkeys(("mem", "cpus", "fault_seed"), U64),
    "load_addr": Maybe(U64),
    **dict.fromkeys(("host_quirks", "agent"), FLAG),
    **dict.fromkeys(("timeout", "stuck", "stuck_at_boot", "switch_interval"), Maybe(SECONDS)),
    **dict.fromkeys(("fail_on", "faults"), Several(Text(), 1 << 10)),
}
"""All other settings, and what each may be."""
_FIELDS: dict[str, Kind] = {
    **dict.fromkeys(("cache", "format", "kind", "name", "path", "serial", "tag", "target"), Text()),
    **dict.fromkeys(("overlay", "readonly", "spoof"), FLAG),
    **dict.fromkeys(("cid", "queues", "size"), U64),
    **dict.fromkeys(("mtu", "rate"), Maybe(U64)),
    **dict.fromkeys(("datapath", "pcap", "where"), Maybe(Text())),
    "forwards": Several(Text(), 1 << 10),
    "mac": Maybe(Bytes(MAC_LENGTH, container=bytes)),
}
"""Fields of the objects among the settings, by name: each means the same wherever it is."""
_CHANGEABLE = (
    *("datapath", "disks", "exits", "fail_on", "lint", "name", "net", "on_panic", "stuck", "stuck_at_boot"),
    *("switch_interval", "symbols", "timeout", "virtio", "vsock"),
)
"""What may be another in a VM that is restored: the rest is in the guest's memory."""
SETTINGS = tuple(name for name in VmConfig.__slots__ if name not in ("lint", "virtio"))
"""Whether drivers are judged is of no account to a guest; devices of one's own are objects of the program that made
the VM."""
_FORGOTTEN = ("name", "timeout", "stuck", "stuck_at_boot")
"""What was for the VM that was saved alone."""


def save_config(config: VmConfig) -> dict[str, Any]:
    """The settings of `config`."""
    found: dict[str, Any] = {}
    for setting in SETTINGS:
        value = getattr(config, setting)
        if setting in _PARTS:
            several = _PARTS[setting][1]
            value = [_save(one) for one in value] if several else None if value is None else _save(value)
        found[setting] = list(value) if type(value) is tuple else value
    return found


def _kinds(part: type) -> dict[str, Kind]:
    return {name: _FIELDS[name] for name in part.__slots__}  # type: ignore[attr-defined]


def _save(part: object) -> dict[str, Any]:
    return saved(part, _kinds(type(part)))


def make_config(state: Any, path: str, **others: Any) -> VmConfig:
    """The configuration again, but for `others`, which are some of VmConfig's settings.

    Raises LoadError for what is no configuration, UsageError for others that cannot be.
    """
    for name in others:
        if name not in _CHANGEABLE:
            raise UsageError(
                f"{name} is what the snapshot has: it cannot be another (what can: {', '.join(_CHANGEABLE)})"
            )
    if type(state) is not dict or state.keys() != set(SETTINGS):
        raise LoadError(path, "its state has another pyvmm's configuration")
    try:
        plain = judged("settings", {name: state[name] for name in state if name not in _PARTS}, _PLAIN)
        settings = plain | {name: _make(name, value) for name, value in state.items() if name in _PARTS}
        for name in _FORGOTTEN:
            del settings[name]
        settings["net"] = settings.pop("nets")
        if settings["agent"]:  # which brings its ports by itself
            settings["ports"] = [port for port in settings["ports"] if port.name not in AGENT_PORTS]
        before = VmConfig(**settings)
    except (StateError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise LoadError(path, f"its state has no good configuration: {error}") from error
    config = VmConfig(**{**settings, **others})
    for name in ("disks", "nets"):
        now, then = getattr(config, name), getattr(before, name)
        if len(now) != len(then):
            raise UsageError(f"{len(now)} {name}: the snapshot's VM has {len(then)}")
    for disk, saved_disk in zip(config.disks, before.disks, strict=True):
        if (disk.readonly, disk.queues, disk.overlay) != (saved_disk.readonly, saved_disk.queues, saved_disk.overlay):
            raise UsageError(f"{disk.path}: readonly, overlay and queues are as the snapshot has them")
    if (config.vsock is None) != (before.vsock is None):
        raise UsageError("vsock: whether there is one is as the snapshot has it")
    return config


def _make(name: str, value: Any) -> Any:
    kind, several = _PARTS[name]
    if several:
        return [_part(kind, one) for one in value]
    return None if value is None else _part(kind, value)


def _part(kind: type, values: Any) -> Any:
    return kind(**judged(kind.__name__, values, _kinds(kind)))
