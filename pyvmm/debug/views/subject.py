"""What a view looks at: the VM as far as views need it, and a vCPU's state out of it. Imports state and errors."""

from __future__ import annotations

from errno import EINVAL, ENXIO

from pyvmm.debug.state import VcpuState, capture
from pyvmm.errors import KvmError, PyvmmError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol, TypeVar

    from pyvmm.config import VmConfig
    from pyvmm.memory import GuestMemory
    from pyvmm.slots import Slot

    T = TypeVar("T")

    class Subject(Protocol):
        """`pyvmm.vm.VM`, or what looks like one."""

        config: VmConfig
        loaded: Any

        @property
        def memory(self) -> GuestMemory: ...
        @property
        def machine(self) -> Any: ...
        @property
        def vcpus(self) -> Sequence[Any]: ...
        @property
        def loops(self) -> Sequence[Any]: ...
        @property
        def stats(self) -> Any: ...
        @property
        def virtio_devices(self) -> Sequence[Any]: ...
        @property
        def slots(self) -> Sequence[Slot]: ...

        def symbol(self, address: int) -> str: ...

        def address_of(self, symbol: str) -> int | None: ...


ABSENT = (ENXIO, EINVAL)
"""What KVM says where a VM was made without the chip (KVM API, 4.26, 4.72; 4.57)."""


def vcpu_of(vm: Subject, vcpu: int) -> Any:
    """vCPU number `vcpu`. Raises UsageError where there is none."""
    if not 0 <= vcpu < len(vm.vcpus):
        there = f"0 to {len(vm.vcpus) - 1}" if vm.vcpus else "there is none: the VM has not been started"
        raise UsageError(f"there is no vCPU {vcpu} (expected {there})")
    return vm.vcpus[vcpu]


def state_of(vm: Subject, vcpu: int) -> VcpuState:
    """Its state, which may have parts that cannot be read. Raises UsageError where there is no such vCPU."""
    return capture(vcpu_of(vm, vcpu))


def whole_state_of(vm: Subject, vcpu: int) -> VcpuState:
    """Its state, `whole`. Raises PyvmmError too, where KVM does not give it."""
    state = state_of(vm, vcpu)
    if not state.whole:
        raise PyvmmError(f"vCPU {vcpu} cannot be read: {'; '.join(state.unread.values())}")
    return state


def of_kvm(what: str, read: Callable[..., T], *args: Any) -> tuple[T | None, str]:
    """What `read(*args)` gets of KVM's own chip, the one called `what`; or None, and why in a sentence."""
    try:
        return read(*args), ""
    except KvmError as error:
        if error.errno in ABSENT:
            return None, f"{what}: this VM has none in KVM (KVM_CREATE_IRQCHIP and KVM_CREATE_PIT2 make them)"
        return None, f"{what} could not be read: {error}"


def place(vm: Subject, address: int) -> str:
    """The function at an address in angle brackets, led by a space; "" where it is not known."""
    name = vm.symbol(address)
    return f" <{name}>" if name else ""
