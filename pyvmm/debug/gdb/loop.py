"""A vCPU's thread under a debugger. Imports target, runloop and typed exits."""

from __future__ import annotations

from pyvmm.kvm.exits import Interrupted, Mmio, Pio
from pyvmm.runloop import VcpuLoop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.debug.gdb.target import Target
    from pyvmm.runloop import Outcome


class DebuggedLoop(VcpuLoop):
    """A vCPU's loop that shows the debugger what is its own, before anybody completes or judges it."""

    __slots__ = ("_completing", "_target")

    def __init__(self, target: Target, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._target = target
        self._completing = False

    def dispatch(self, exit: Any) -> None:
        """As its base; an instruction that is looked at is over when its access is complete."""
        target = self._target
        if target.on_exit(self.vcpu, exit):
            self.note(exit)
            return
        super().dispatch(exit)
        kind = exit.__class__
        if kind is Interrupted or self._completing or not target.stepping(self.vcpu.index):
            return
        if kind is Pio or kind is Mmio:
            self._complete()
        if target.stepping(self.vcpu.index) and self._control.outcome is None:
            target.on_step(self.vcpu)

    def _complete(self) -> None:
        self._completing = True
        try:
            self._finish_io()
        finally:
            self._completing = False
        with self._control.condition:
            if not self._control.attention:
                self.vcpu.immediate_exit = False

    def _fail(self, outcome: Outcome) -> None:
        if not self._target.on_crash(self.vcpu.index, outcome):
            super()._fail(outcome)
