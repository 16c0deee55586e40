"""Looks into a VM that stands still, each as lines of text and as JSON types.

`pyvmm inspect`, the keys of the console, the prompt of `--shell` and gdb's `monitor` all show these. Below `vm`: a view
is given the VM and asks it for memory, machine and vCPUs. The caller lets the VM stand still (`vm.still()`, a pause);
nothing here changes anything, and whatever a guest has put into its registers and tables ends in words, not in an
exception, and in a bounded number of them. Each module has a view, `command` the words by which a user asks for one.

A view called X has a function `X`, whose lines need no prefix, and `X_data` with the same for programs; numbers there
are hexadecimal strings where they are addresses or registers, for 64 bits are more than JSON's readers keep.
"""

from pyvmm.debug.views.command import USAGE, VIEWS, locate, look, look_data
from pyvmm.debug.views.contents import disassembly, disassembly_data, hexdump, hexdump_data
from pyvmm.debug.views.devices import devices, devices_data
from pyvmm.debug.views.exits import exits, exits_data
from pyvmm.debug.views.irqchip import irqchip, irqchip_data
from pyvmm.debug.views.lapic import lapic, lapic_data
from pyvmm.debug.views.memorymap import memory_map, memory_map_data
from pyvmm.debug.views.pit import pit, pit_data
from pyvmm.debug.views.queues import queues, queues_data
from pyvmm.debug.views.registers import registers, registers_data
from pyvmm.debug.views.tables import descriptor_tables, descriptor_tables_data
from pyvmm.debug.views.walk import page_walk, page_walk_data

__all__ = [
    "USAGE",
    "VIEWS",
    "descriptor_tables",
    "descriptor_tables_data",
    "devices",
    "devices_data",
    "disassembly",
    "disassembly_data",
    "exits",
    "exits_data",
    "hexdump",
    "hexdump_data",
    "irqchip",
    "irqchip_data",
    "lapic",
    "lapic_data",
    "locate",
    "look",
    "look_data",
    "memory_map",
    "memory_map_data",
    "page_walk",
    "page_walk_data",
    "pit",
    "pit_data",
    "queues",
    "queues_data",
    "registers",
    "registers_data",
]
