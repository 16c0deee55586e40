"""A vCPU that replays typed exits: the run loop and every device under test without /dev/kvm.

Imports the typed exits alone.
"""

from __future__ import annotations

import threading

from pyvmm.kvm.exits import Exit, Interrupted, Mmio, Pio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any


class ScriptedVcpu:
    """Gives the exits of a script, one a `run()`, and then waits as a halted vCPU does, until kicked.

    An item of the script is an exit, or a sequence of exits that belong to one instruction, as a page-crossing MMIO
    access makes: the later ones come even while `immediate_exit` is set, as KVM does it (KVM API, 5, immediate_exit).
    `answers` are the answers to reads, in order.
    """

    def __init__(self, script: Iterable[Exit | Iterable[Exit]] = (), index: int = 0) -> None:
        self.index = index
        self.answers: list[bytes] = []
        self._script = iter(script)
        self._rest: list[Exit] = []
        self._kicked = threading.Event()

    @property
    def immediate_exit(self) -> bool:
        """While set, `run()` gives Interrupted as soon as the instruction under way is complete."""
        return self._kicked.is_set()

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        if value:
            self._kicked.set()
        else:
            self._kicked.clear()

    def kick(self) -> None:
        """Make the `run()` under way, or the next one, come back."""
        self._kicked.set()

    def run(self) -> Exit:
        """The next exit of the script."""
        if self._rest:
            return self._rest.pop(0)
        if not self._kicked.is_set():
            item = next(self._script, None)
            if isinstance(item, Exit):
                return item
            if item is not None:
                first, *self._rest = item
                return first
            self._kicked.wait()
        return Interrupted()

    def answer(self, exit: Exit, data: bytes) -> None:
        """Record the answer to a read."""
        if isinstance(exit, Pio | Mmio):
            exit.data = data
        self.answers.append(data)

    def reply(self, exit: Any, value: int) -> None:
        """The same, of a read of one item."""
        self.answer(exit, value.to_bytes(exit.size, "little"))

    # What a real vCPU leaves to the helper: nothing here.

    def tell(self, tell: Callable[[Exit, int, int], None], at_once: bool) -> None:
        """There will be nothing to tell."""

    def served(self) -> Mapping[type[Exit], int]:
        """None."""
        return {}

    def history(self, seen: Sequence[Exit], limit: int) -> Sequence[Exit]:
        """Those that were seen."""
        return seen
