"""What a VM has of its agent: whichever runs there, by one interface. Imports errors and its neighbours."""

from __future__ import annotations

import threading
import time

from pyvmm.errors import TimeLimitError, UsageError
from pyvmm.guest.agent import GuestAgent
from pyvmm.guest.channel import ExecChannel
from pyvmm.guest.process import GuestProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from pyvmm.guest.completed import Completed, Stream

READY_WAIT = 120.0
"""Seconds that a guest has until its agent answers. A boot takes ten where the host emulates ring 0, on a quiet one."""
ASK_AGAIN = 2.0
"""Seconds after which an agent that has its port open and does not answer is asked again."""


class Guest:
    """The agent in a guest, by its two ports.

    agent    what speaks the JSON protocol, for all that is not here
    own      whether it is pyvmm's agent: then the streams of commands are not buffered, and `popen` works. Known once
             `wait_ready` has returned

    Every method waits until the agent is ready first, for READY_WAIT seconds at most, and raises TimeLimitError if it
    is not; `timeout`, in seconds, begins then. All raise PyvmmError when the VM ends.
    """

    def __init__(self, agent: Stream, channel: Stream) -> None:
        self.agent = GuestAgent(agent)
        self.own = False
        self._agent_port = agent
        self._exec_port = channel
        self._channel = ExecChannel(channel)
        self._ready = False
        self._lock = threading.Lock()

    def wait_ready(self, timeout: float | None = READY_WAIT) -> None:
        """Wait until the agent answers."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            if self._ready:
                return
            try:
                self._agent_port.wait_open(timeout)
            except TimeLimitError:
                raise TimeLimitError(f"no agent came up in the guest within {timeout:g} s") from None
            while not self._ready:
                left = None if deadline is None else deadline - time.monotonic()
                try:
                    self._begin(ASK_AGAIN if left is None else max(0.1, min(left, ASK_AGAIN)))
                except TimeLimitError:
                    if left is not None and left <= ASK_AGAIN:
                        raise

    def _begin(self, timeout: float) -> None:
        try:
            self._exec_port.wait_open(0)
        except TimeLimitError:
            self.agent.sync(timeout)
            self._ready = True
            return
        self._channel.open(None if timeout is None else READY_WAIT)
        self._ready = self.own = True

    def exec(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        input: bytes = b"",
        timeout: float | None = 60.0,
    ) -> Completed:
        """Run a command to its end. `env` is added to the agent's own variables.

        Raises GuestAgentError if the guest cannot run it, TimeLimitError after `timeout` seconds: it is killed then.
        With a distribution's agent input and output are limited, as `GuestAgent.exec` says, and `user` is not known.
        """
        self.wait_ready()
        if self.own:
            return self.popen(args, env=env, cwd=cwd, user=user).communicate(input, timeout)
        if user:
            raise UsageError("only pyvmm's own agent runs commands as another user")
        return self.agent.exec(args, env=env, cwd=cwd, input=input, timeout=timeout)

    def popen(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        terminal: tuple[int, int] | None = None,
        kind: type[GuestProcess] = GuestProcess,
    ) -> GuestProcess:
        """Start a command and return with its streams; see `ExecChannel.popen`. Needs pyvmm's own agent."""
        self._own_agent("streams of commands")
        return self._channel.popen(args, env=env, cwd=cwd, user=user, terminal=terminal, kind=kind)

    def mount(self, source: str, target: str, type: str, options: str = "", flags: int = 0) -> None:
        """Have the guest mount something; see `ExecChannel.mount`. Needs pyvmm's own agent."""
        self._own_agent("mounts")
        self._channel.mount(source, target, type, options, flags)

    def change_root(self, path: str) -> None:
        """Give the agent and its commands another root file system; see `ExecChannel.change_root`."""
        self._own_agent("another root file system")
        self._channel.change_root(path)

    def _own_agent(self, what: str) -> None:
        self.wait_ready()
        if not self.own:
            raise UsageError(f"{what} in the guest need pyvmm's own agent there (docs/exec.md)")

    def push(self, local: str | os.PathLike[str], remote: str, timeout: float | None = 60.0) -> None:
        """Copy the host's file `local` to `remote` in the guest."""
        self.wait_ready()
        self.agent.push(local, remote, timeout)

    def pull(self, remote: str, local: str | os.PathLike[str], timeout: float | None = 60.0) -> None:
        """Copy the guest's file `remote` to `local` here."""
        self.wait_ready()
        self.agent.pull(remote, local, timeout)
