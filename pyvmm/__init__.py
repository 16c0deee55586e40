"""pyvmm: a KVM virtual machine monitor in Python.

The public names, each imported when it is first used, so that `import pyvmm` costs nothing and works on any
platform, compiled module or not. Whatever is not listed here is internal and may change.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.config import VmConfig
    from pyvmm.errors import (
        BackendError,
        BusConflictError,
        GuestAgentError,
        GuestMemoryError,
        ImageError,
        KvmError,
        KvmUnavailableError,
        LoadError,
        MissingExtraError,
        PyvmmError,
        TimeLimitError,
        UsageError,
        VcpuStuckError,
    )
    from pyvmm.hardware import Balloon, Disk, Net, Port, Rng, Share, Vsock
    from pyvmm.owndevices import MmioDevice, PortDevice
    from pyvmm.runloop import Outcome
    from pyvmm.virtio.device import VirtioDevice
    from pyvmm.vm import VM

__version__ = "0.1.0"

__all__ = [
    "VM",
    "VmConfig",
    "Disk",
    "Net",
    "Port",
    "Rng",
    "Share",
    "Vsock",
    "Balloon",
    "PortDevice",
    "MmioDevice",
    "VirtioDevice",
    "Outcome",
    "PyvmmError",
    "UsageError",
    "KvmUnavailableError",
    "KvmError",
    "LoadError",
    "GuestMemoryError",
    "BusConflictError",
    "GuestAgentError",
    "ImageError",
    "BackendError",
    "VcpuStuckError",
    "TimeLimitError",
    "MissingExtraError",
    "__version__",
]

_HOMES = {"VM": "pyvmm.vm", "VmConfig": "pyvmm.config", "Outcome": "pyvmm.runloop"}
_HOMES |= dict.fromkeys(("Balloon", "Disk", "Net", "Port", "Rng", "Share", "Vsock"), "pyvmm.hardware")
_HOMES |= {"MmioDevice": "pyvmm.owndevices", "PortDevice": "pyvmm.owndevices", "VirtioDevice": "pyvmm.virtio.device"}
"""Where a public name is to be found; every other one is an exception, in `pyvmm.errors`."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES.get(name, "pyvmm.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
