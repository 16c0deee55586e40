"""How a VM is ended, and waited for: by the program that runs it, or by the guest that is asked to.

A base of `pyvmm.vm.VM`, which makes all this. Imports its own base, runloop, steering and errors.
"""

from __future__ import annotations

import time

from pyvmm.errors import STATUS_KILLED, TimeLimitError, UsageError
from pyvmm.parts import Parts
from pyvmm.runloop import Outcome
from pyvmm.steering import STUCK_AFTER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LISTENS_AGAIN = 0.05
"""Seconds between two looks whether the guest listens to its power button."""


class Endings(Parts):
    """What `VM` has to end and to be waited for."""

    _standing: list[Callable[[], float]]

    def stop(self, outcome: Outcome | None = None) -> None:
        """End the run, by default with reason "stopped" and status 0, unless it has ended already. Any thread."""
        self._control.end(outcome or Outcome("stopped", 0, "stopped by the program that ran it"))

    def stands_for(self, stood: Callable[[], float]) -> None:
        """The time limit is longer by the seconds that `stood()` says the VM has stood still for somebody so far."""
        self._standing.append(stood)

    def kill(self) -> Outcome:
        """End the run at once and return when no vCPU runs any more. Its outcome is "killed" unless it had another.

        Raises UsageError for a VM that has not been started, VcpuStuckError.
        """
        self.stop(Outcome("killed", STATUS_KILLED, "killed by the program that ran it"))
        return self.wait()

    def shutdown(self, timeout: float = 30.0) -> Outcome:
        """Press the power button (ACPI 6.5, 4.8.3.1.1) and wait until the guest has switched the machine off.

        It is pressed as soon as the guest listens. Raises TimeLimitError after `timeout` seconds, the VM running on;
        UsageError for a VM that is paused or has not been started.
        """
        deadline = time.monotonic() + timeout
        pm = self.machine.pm
        if self.state == "paused":
            raise UsageError("a paused guest cannot shut down: resume() comes first")
        while not pm.listening and self.exit is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeLimitError(f"the guest does not listen to its power button ({timeout:g} s)")
            self._await_end(min(LISTENS_AGAIN, left))
        if self.exit is None:
            self.machine.press_power_button()
        if not self._await_end(max(0.0, deadline - time.monotonic())):
            raise TimeLimitError(f"the guest has not switched itself off {timeout:g} s after its power button")
        return self.wait()

    def _await_end(self, timeout: float | None) -> bool:
        control = self._control
        with control.condition:
            return control.condition.wait_for(lambda: control.outcome is not None, timeout)

    def wait(self, timeout: float | None = None) -> Outcome:
        """Wait until the run has ended and return how.

        Raises TimeLimitError after `timeout` seconds, the VM running on; VcpuStuckError when the run has ended but a
        vCPU does not come back from KVM.
        """
        if not self.loops:
            raise UsageError("this VM has not been started")
        control = self._control
        if not self._await_end(timeout):
            raise TimeLimitError(f"the VM is still running after {timeout:g} s")
        control.wait_ended(STUCK_AFTER)
        assert control.outcome is not None
        return control.outcome
