"""Who looks on at the run of a VM: its diagnosis and its observers; a trace and a debugger where they are asked for.

A base of `pyvmm.vm.VM`, which says when. Imports its own base, runloop and the diagnosis; the recorder of traces and
the stub for gdb when there is need of them.
"""

from __future__ import annotations

import os
import time

from pyvmm.debug.diagnosis import Diagnosis
from pyvmm.endings import Endings
from pyvmm.runloop import VcpuLoop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyvmm.boot import LoadedKernel
    from pyvmm.consolelink import Console
    from pyvmm.debug.gdb.server import GdbServer
    from pyvmm.observe import Observer
    from pyvmm.trace.recorder import Tracer

REPORTED = ("crash", "time-limit", "stuck", "panic")
"""Outcomes that deserve a crash report."""


class Onlookers(Endings):
    """What `VM` has of those who look on."""

    console: Console
    loaded: LoadedKernel | None
    _host_closers: list[Callable[[], None]]
    _say: Callable[[str], None] | None

    def _invite(
        self,
        observers: Sequence[Observer],
        trace: str | os.PathLike[str] | None,
        gdb: str | int | bool | None,
    ) -> None:
        """Who they are. Raises UsageError."""
        self._observers = tuple(observers)
        self._diagnosis = Diagnosis(self.config, self._say)
        self.trace = trace
        self._tracer: Tracer | None = None
        self.gdb: GdbServer | None = None
        if gdb is not None and gdb is not False:
            from pyvmm.debug.gdb.server import GdbServer

            self.gdb = GdbServer(gdb, self._say)

    # --- Before the run ----------------------------------------------------------------------------------------------

    def _open_gdb(self) -> None:
        if self.gdb is not None:
            self._host_closers.append(self.gdb.close)
            self.gdb.open()

    def _make_tracer(self) -> Tracer | None:
        """What records the run, if that was asked for: its file is made now, and whole when all else is closed."""
        if self.trace is not None:
            from pyvmm.trace.recorder import Tracer

            self._tracer = tracer = Tracer(os.fspath(self.trace), self._say)
            self._host_closers.append(tracer.close)
            self.listen(tracer.output)
        return self._tracer

    def _maker_of_loops(self) -> Callable[..., VcpuLoop]:
        """What makes a vCPU's loop. A debugger has the VM then, whose threads have not started."""
        gdb = self.gdb
        if gdb is None:
            return VcpuLoop

        def quiet(still: bool) -> None:
            if self._virtio is not None and still:
                self._virtio.pause()
            elif self._virtio is not None and not self._control.pausing:
                self._virtio.resume()

        assert self.loaded is not None
        gdb.begin(self, self._control, self.host.debug, quiet, self.loaded.path)
        return gdb.loop

    def _start_gdb(self) -> None:
        gdb = self.gdb
        if gdb is not None:
            self.stands_for(lambda: gdb.stood)
            gdb.start()

    def _diagnose(self) -> None:
        assert self.loaded is not None and self._fd is not None
        self._host_closers.append(self._diagnosis.stop)
        self._diagnosis.begin(self.loaded, self._control, self.loops, self._vcpus, self._fd, self.machine, self.memory)

    # --- While it runs, and at its end -------------------------------------------------------------------------------

    def _output(self, data: bytes) -> None:
        self._diagnosis.console.feed(data)
        self.console.write(data)
        for listener in self._listeners:
            listener(data)

    def _announce(self, state: str) -> None:
        for observer in self._observers:
            observer.on_lifecycle(state)
        if self._tracer is not None:
            self._tracer.record("lifecycle", state=state)

    def _ended(self) -> None:
        """On the last vCPU's thread: every vCPU stands still, nothing has been closed."""
        self._ended_at = time.monotonic()
        self.machine.hot.drain()
        if self.gdb is not None:
            self.gdb.withdraw()
        if self._virtio is not None:
            self._virtio.settle()
        assert self._control.outcome is not None
        self._control.outcome = outcome = self._diagnosis.judge(self._control.outcome)
        if outcome.reason in REPORTED and outcome.report is None:
            outcome.report = self._diagnosis.report(outcome, stands=self.gdb is not None and self.gdb.stands)
        self._announce("ended")
        if self._tracer is not None:
            self._tracer.end(outcome)
        if self.gdb is not None:
            self.gdb.ended(outcome)
