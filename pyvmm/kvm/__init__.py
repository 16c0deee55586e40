"""KVM, as its API document divides it: `Kvm` (system), `VmFd`, `VcpuFd` and `DeviceFd`, one module each.

May import pyvmm._native and errors. Imports anywhere, compiled module or not: what needs it says so when it is used,
with KvmUnavailableError. The names here are resolved when first asked for, so that the typed exits (exits.py, pure
Python) cost nothing but themselves.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.kvm.device import DeviceFd as DeviceFd
    from pyvmm.kvm.system import Kvm as Kvm
    from pyvmm.kvm.vcpu import VcpuFd as VcpuFd
    from pyvmm.kvm.vm import VmFd as VmFd

_HOMES = {"Kvm": "system", "VmFd": "vm", "VcpuFd": "vcpu", "DeviceFd": "device"}

__all__ = ["Kvm", "VmFd", "VcpuFd", "DeviceFd"]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = __import__(f"{__name__}.{home}", fromlist=(name,))
    return getattr(module, name)
