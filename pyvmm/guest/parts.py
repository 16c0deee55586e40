"""What a VM can do by the agent in its guest: a base of `pyvmm.vm.VM`. Imports its neighbours when one is asked for."""

from __future__ import annotations

import threading

from pyvmm import threads
from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from typing import Any

    from pyvmm.config import VmConfig
    from pyvmm.guest.agent import GuestAgent
    from pyvmm.guest.completed import Completed
    from pyvmm.guest.process import GuestProcess
    from pyvmm.guest.session import Guest


CLOCK_WAIT = 30.0
"""Seconds that the agent has to set the guest's clock."""


class GuestParts:
    """Commands and files in the guest. All raise UsageError without `agent=True`, and as `Guest` and its like do."""

    config: VmConfig
    _guest: Guest | None = None
    _clock: threading.Thread | None = None

    @property
    def ports(self) -> Mapping[str, Any]:
        raise NotImplementedError

    @property
    def guest(self) -> Guest:
        """What the agent in the guest does there."""
        clock = self._clock
        if clock is not None and clock is not threading.current_thread():
            clock.join()
        if self._guest is None:
            from pyvmm.config import AGENT_PORTS
            from pyvmm.errors import UsageError
            from pyvmm.guest.session import Guest

            if not self.config.agent:
                raise UsageError("commands in the guest need agent=True")
            if not all(name in self.ports for name in AGENT_PORTS):
                raise UsageError("this VM has no agent yet: start() comes first")
            self._guest = Guest(*(self.ports[name] for name in AGENT_PORTS))
        return self._guest

    def _set_clock(self) -> None:
        """Have the agent set the guest's clock, which has stood still for long. Begins it, on a thread of its own.

        Whoever asks for `guest` waits until it is done, so that nothing that he does comes before. Without an answer
        the clock stays as it is.
        """

        def set_time() -> None:
            try:
                self.guest.wait_ready(CLOCK_WAIT)
                self.guest.agent.set_time(timeout=CLOCK_WAIT)
            except PyvmmError:
                pass

        self._clock = clock = threading.Thread(target=set_time, name="clock")
        threads.start(clock)

    @property
    def agent(self) -> GuestAgent:
        """The guest's agent by its own protocol (clock, network, shutdown), waited for as `Guest.wait_ready` does."""
        self.guest.wait_ready()
        return self.guest.agent

    def exec(self, args: Sequence[str], **settings: Any) -> Completed:
        """Run a command in the guest to its end; see `Guest.exec`."""
        return self.guest.exec(args, **settings)

    def popen(self, args: Sequence[str], **settings: Any) -> GuestProcess:
        """Start a command in the guest and have its streams; see `Guest.popen`."""
        return self.guest.popen(args, **settings)

    def push(self, local: str | os.PathLike[str], remote: str, timeout: float | None = 60.0) -> None:
        """Copy the host's file `local` to `remote` in the guest; see `GuestAgent.push`."""
        self.guest.push(local, remote, timeout)

    def pull(self, remote: str, local: str | os.PathLike[str], timeout: float | None = 60.0) -> None:
        """Copy the guest's file `remote` to `local` here; see `GuestAgent.pull`."""
        self.guest.pull(remote, local, timeout)
