"""Help for tests: of pyvmm itself, and of programs that run guests with it.

What tests that use the pytest plugin may want by name, each imported when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.testing.fixtures import VmFactory
    from pyvmm.testing.network import VmNet
    from pyvmm.testing.writelog import WriteLog

__all__ = ["VmFactory", "VmNet", "WriteLog"]

_HOMES = {
    "VmFactory": "pyvmm.testing.fixtures",
    "VmNet": "pyvmm.testing.network",
    "WriteLog": "pyvmm.testing.writelog",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
