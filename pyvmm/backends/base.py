"""What the console back-ends have in common: output through a sink, input through a pump, nothing else.

May import the sink and the pump.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.backends.pump import InputPump
    from pyvmm.backends.sink import OutputSink


CTRL_A = 0x01
"""The escape key, unless another one is named."""


class StreamConsole:
    """A console whose `start()`, a subclass's, makes the sink and, where there is input, the pump.

    `failure` is the errno that ended output, or 0; `what` is how messages call the console.
    """

    what = "--console"

    def __init__(self) -> None:
        self.failure = 0
        self._sink: OutputSink | None = None
        self._pump: InputPump | None = None

    def write(self, data: bytes) -> None:
        """Output of the guest."""
        if self._sink is not None:
            self._sink.write(data)

    def input_ready(self) -> None:
        """The device has room again."""
        if self._pump is not None:
            self._pump.input_ready()

    def drain(self, timeout: float | None) -> bool:
        """Wait until all output is written or sent; False once `timeout` seconds have gone by without progress."""
        return self._sink is None or self._sink.drain(timeout)

    def close(self) -> None:
        """Stop reading and writing. A subclass then gives back what it has opened."""
        if self._pump is not None:
            self._pump.close()
        if self._sink is not None:
            self._sink.close()

    def restore(self) -> None:
        """Put back what must not be left behind even in a hurry; any thread, any time. Here there is nothing."""
