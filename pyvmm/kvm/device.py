"""`DeviceFd`: a device inside KVM, made by KVM_CREATE_DEVICE.

Imports descriptor.py. Follows the KVM API document (Documentation/virt/kvm/api.rst), 4.79 to 4.81.
"""

from __future__ import annotations

from pyvmm.kvm.descriptor import Attributes


class DeviceFd(Attributes):
    """A device of one of the types KVM_DEV_TYPE_. All there is to it are its attributes."""

    __slots__ = ("type",)

    def __init__(self, fd: int, type: int) -> None:
        super().__init__(fd)
        self.type = type
