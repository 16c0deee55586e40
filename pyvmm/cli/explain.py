"""`pyvmm run --explain` and `pyvmm trace explain`: what the user asks for, and where the words go.

May import trace, debug's symbols, config and what knows a VM's devices.
"""

from __future__ import annotations

import os

from pyvmm.cli.progress import log
from pyvmm.trace.decode import describe
from pyvmm.trace.explain import KINDS, Wanted, Words, explain, kind_of
from pyvmm.trace.fields import text
from pyvmm.trace.reader import read

MOST_DEVICES = 4096
TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from pyvmm.config import VmConfig
    from pyvmm.trace.narrator import Narrator
    from pyvmm.trace.reader import Trace


def narrator(config: VmConfig, asked: bool | Sequence[str]) -> Narrator:
    """What tells a run in words on standard error; `asked` is the option's value, True or names of devices.

    Raises UsageError for a name that is none of the devices of the VM that `config` describes.
    """
    from pyvmm.trace.narrator import Narrator

    names = () if asked is True or asked is False else tuple(asked)
    if names:
        Wanted(names).check(_devices(config))
    return Narrator(log.say, names)


def needs_lint(asked: bool | Sequence[str]) -> bool:
    """Whether virtio devices are explained: their notifications are exits then, and what drivers do wrong is told."""
    return asked is True or any(kind_of(name) or name in KINDS.values() for name in asked or ())


def _devices(config: VmConfig) -> set[str]:
    """The names of all devices that the guest may find."""
    from pyvmm import layout
    from pyvmm.machine import Machine
    from pyvmm.slots import slots

    machine = Machine(layout.ram_ranges(config.mem), lambda *_: None, lambda _: None, lambda _: None)
    transport = "mmio" if config.transport == "mmio" else "pci"  # which has room for as many as there may be
    found = {device["name"] for device in describe(machine)} | {slot.name for slot in slots(config, transport)}
    return found | ({"pci"} if transport == "pci" else set())


def explain_trace(arguments: argparse.Namespace) -> int:
    """`pyvmm trace explain`: to standard output."""
    trace = read(arguments.trace)
    names = [name for part in arguments.device for name in part.split(",")]
    wanted = Wanted(names)
    if names:
        wanted.check(_devices_in(trace))
    words = Words(_symbols(arguments.symbols or trace.header.get("kernel"), bool(arguments.symbols)))
    explain(trace.records(), wanted, words, print)
    return 0


def _devices_in(trace: Trace) -> set[str]:
    """The names of the devices that a trace tells of; of a trace that has been made up, some."""
    listed = trace.header.get("devices")
    found = {text(device, "name") for device in listed if isinstance(device, dict)} if type(listed) is list else set()
    for record in trace.records():
        if len(found) < MOST_DEVICES:
            found.add(text(record, "device"))
    return found - {""}


def _symbols(path: object, required: bool) -> Callable[[int], str]:
    """What names addresses by the kernel of the trace, if that is still there and has symbols."""
    from pyvmm.debug.symbols import Source

    if not isinstance(path, str) or not (required or os.path.isfile(path)):
        return lambda address: ""
    source = Source(path, required=required)

    def name(address: int) -> str:
        found = source.get()
        return "" if found is None else found.describe(address)

    return name
