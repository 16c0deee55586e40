"""What the fuzzer asks of a kind of device."""

from __future__ import annotations


class Subject:
    """One device with what it is connected to. `kinds.add(name)` counts what is reached.

    name             of the kind
    modules          whose errors and lines count; where one has `time`, the case decides on it
    queues           numbers of queues below which a case chooses
    writable_config  offsets in the configuration space that a driver may write
    greeting         what a driver asks at first: (queue, readable byte strings, lengths of writable buffers) each
    seeds            operations of its first cases, each after a good bring-up
    required         names of kinds that must be reached
    everything       whether so must those of every device: of the engine, the transport and `modules`
    transport        "mmio" or "pci"
    ordered          whether requests are served in the order in which they come back
    """

    name = ""
    modules: tuple[object, ...] = ()
    queues = 1
    writable_config: tuple[object, ...] = (0,)
    everything = True
    transport = "mmio"
    ordered = True
    greeting: tuple[object, ...] = ()
    seeds: tuple[object, ...] = ()
    required: tuple[object, ...] = ()

    def __init__(self, settings, kinds):
        """Makes `device`."""
        self.kinds = kinds
        self.device = None

    # --- From bytes, by a `cases.Draw` --------------------------------------------------------------------------------

    @staticmethod
    def settings(draw):
        """Settings for the constructor."""
        return {}

    @staticmethod
    def request(draw):
        """A request: queue, readable byte strings, lengths of writable buffers."""
        raise NotImplementedError

    @staticmethod
    def host(draw):
        """What the host does: a word, and arguments for it."""
        return ("nothing",)

    # --- Being run ----------------------------------------------------------------------------------------------------

    def happen(self, what, *arguments):
        """The host does what `host` said."""

    def happened(self, sources):
        """Those of the device's `sources` that poll(2) would report, as (descriptor, events)."""
        return []

    def outcome(self, queue, request, written, answer):
        """What kind of answer the `request` has got, in a sound chain; "" if it does not count."""
        return ""

    def prompt(self, queue):
        """Whether requests in this queue are answered as soon as the data plane runs."""
        return False

    def resync(self):
        """Requests that `outcome` was not told of may have been served: take the device's state as it is."""

    def calm(self):
        """The host is good from now on."""

    def probe(self, driver):
        """Good requests, asserted to be served. `driver` is up; kick() serves at once."""
