"""pyvmm: a KVM virtual machine monitor in Python.

The public names, each imported when it is first used, so that `import pyvmm` costs nothing and works on any
platform, compiled module or not. Whatever is not listed here is internal and may change.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.errors import (
        BackendError,
        BusConflictError,
        GuestMemoryError,
        KvmError,
        KvmUnavailableError,
        LoadError,
        MissingExtraError,
        PyvmmError,
        TimeLimitError,
        UsageError,
        VcpuStuckError,
    )
    from pyvmm.vm import VM, Exit

__version__ = "0.1.0"

__all__ = [
    "VM",
    "Exit",
    "PyvmmError",
    "UsageError",
    "KvmUnavailableError",
    "KvmError",
    "LoadError",
    "GuestMemoryError",
    "BusConflictError",
    "BackendError",
    "VcpuStuckError",
    "TimeLimitError",
    "MissingExtraError",
    "__version__",
]

_HOMES = {"VM": "pyvmm.vm", "Exit": "pyvmm.vm"}  # every other public name is an exception


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES.get(name, "pyvmm.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
