"""Single steps of a vCPU that stands still.

Imports runloop's classes, typed exits and KVM's constants. KVM_SET_GUEST_DEBUG (KVM API, 4.87) has the processor stop
after each instruction. What KVM's emulator does is less regular: it may hand out an access to a device instead of
stopping behind it, so an instruction is done as well once its access has been answered and completed.
"""

from __future__ import annotations

from pyvmm.errors import PyvmmError
from pyvmm.kvm.constants import KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP
from pyvmm.kvm.exits import Debug, Interrupted, Mmio, Pio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyvmm.runloop import VcpuLoop
    from pyvmm.steering import Control


class Steps:
    """`count` single steps of the vCPU of `loop`, whose own thread calls this object. Ends early with the run.

    `possible()` is asked before each step and says why there can be none, or "". `error` is what went wrong, or None.
    """

    def __init__(self, loop: VcpuLoop, control: Control, count: int, possible: Callable[[], str]) -> None:
        self.error: Exception | None = None
        self.cancelled = False
        self._loop = loop
        self._vcpu: Any = loop.vcpu
        self._control = control
        self._count = count
        self._possible = possible

    def __call__(self) -> None:
        try:
            for _ in range(self._count):
                refusal = self._possible()
                if refusal:
                    raise PyvmmError(refusal)
                self._vcpu.guest_debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP)
                try:
                    if not self._step():
                        return
                finally:
                    self._vcpu.guest_debug(0)
        except PyvmmError as error:
            self.error = error

    def _step(self) -> bool:
        """One instruction, or, of a repeated string instruction, one round. False: it was not to be had."""
        while True:
            exit = self._vcpu.run()
            if exit.__class__ is Interrupted:
                with self._control.condition:
                    if self.cancelled or self._control.outcome is not None:
                        return False
                    self._vcpu.immediate_exit = False
                continue
            self._handle(exit)
            if exit.__class__ is Pio or exit.__class__ is Mmio:
                self._complete()
            return True

    def _complete(self) -> None:
        """Let KVM finish the instruction whose access was answered, and do nothing beyond it."""
        self._vcpu.immediate_exit = True
        while True:
            exit = self._vcpu.run()
            if exit.__class__ is not Interrupted:
                self._handle(exit)
            if exit.__class__ is not Pio and exit.__class__ is not Mmio:
                break
        with self._control.condition:
            if self._control.outcome is None:
                self._vcpu.immediate_exit = False

    def _handle(self, exit: Any) -> None:
        if exit.__class__ is Debug:
            self._loop.note(exit)
        else:
            self._loop.dispatch(exit)
