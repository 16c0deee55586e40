"""The smallest virtio device: it answers with what it is asked. For tests of queues, status and transport."""

from __future__ import annotations

from pyvmm.virtio import spec
from pyvmm.virtio.device import VirtioDevice

CONFIG = bytes(range(1, 13))


class Echo(VirtioDevice):
    """Copies what is readable to what is writable; its configuration is `text`, which the driver may read.

    Queue 1 holds what it gets in `held`, until `answer()`. `served` counts chains.
    """

    device_id = spec.ID_RNG
    queue_sizes = (16, 16)

    def __init__(self):
        super().__init__("echo")
        self.held = []
        self.served = 0
        self.text = CONFIG

    def config(self):
        return self.text

    def serve(self, queue):
        for chain in queue.chains():
            self.served += 1
            if queue.index == 1:
                self.held.append(chain)
            else:
                self._echo(queue, chain)

    def _echo(self, queue, chain):
        self.complete(queue, chain, chain.write(chain.read(0, chain.readable_length)))

    def answer(self):
        """Answer the chain that has been held longest, as a data plane would."""
        with self.plane:
            chain = self.held.pop(0)
            self.guarded(lambda: self._echo(self.queues[1], chain))

    def discard(self):
        self.held = []


class WatchedRing:
    """Stands before a queue's used ring, in words of 16 bits: `before(at, value)` is called before each store."""

    def __init__(self, queue, before):
        self.ring, self.before = queue._used, before
        queue._used = self

    def __getitem__(self, at):
        return self.ring[at]

    def __setitem__(self, at, value):
        self.before(at, value)
        self.ring[at] = value
