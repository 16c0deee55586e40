"""Help for tests: of pyvmm itself, and of programs that run guests with it.

The names for annotations of tests that use the fixtures of the pytest plugin, each imported when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.testing.fixtures import VmFactory
    from pyvmm.testing.network import VmNet

__all__ = ["VmFactory", "VmNet"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pyvmm.testing.fixtures import VmFactory
    from pyvmm.testing.network import VmNet

    return {"VmFactory": VmFactory, "VmNet": VmNet}[name]
