"""Time that goes on when a test says so."""


class Clock:
    """Stands for the module `time` in what is tested: `now` is what time it is, in seconds."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


def stop_clock(monkeypatch, *modules):
    """Have each of `modules` read this clock instead of the host's."""
    clock = Clock()
    for module in modules:
        monkeypatch.setattr(module, "time", clock)
    return clock
