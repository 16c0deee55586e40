"""The first cases of every kind of device: each one thing that a driver can do wrong with rings or registers.

So these errors are reached whatever chance brings, and chance has the rest of the time for what comes of them.
"""

from __future__ import annotations

from pyvmm.virtio import spec
from tests.fuzz.cases import LOW_END, RINGS, Case, Draw

_QUEUES = ((0, "size", 3), (0, "misaligned", 0), (0, "overlap", 0), (0, "descriptors", LOW_END))
_SPOILS = (
    *(("gpa", 0, LOW_END), ("length", 1, 0), ("flags", 0, 0xFFF8), ("next", 0, 0xFFFF), ("huge", 0, 0)),
    *(("head", 0, 16), ("twice", 0, 0), ("swap", 0, 0)),
)
_TABLES = (
    *(("table gpa", 0, LOW_END - 16), ("table length", 0, 8), ("table length", 0, 0), ("table length", 0, 16 * 17)),
    *(("table flags", 0, spec.DESC_F_INDIRECT | spec.DESC_F_WRITE), ("table next", 0, 0), ("nested", 0, 0)),
)
_REGISTERS = (
    (("status", spec.STATUS_FAILED), ("kick", 0)),
    (("status", 7), ("reset",), ("kick", 0)),
    (("negotiate", 1 << spec.F_VERSION_1),),
    (("kick", 0xFFFF), ("write", 0x30, 4, 0xFFFF), ("write", 0x20, 4, 1), ("write", 0x80, 4, RINGS)),
    (("read", 0xFFE, 4), ("read", 0xFFC, 4), ("write", 0x100, 4, 1), ("read", 0xF0, 4), ("read", 0, 1)),
    (("set up", 0, 16, "", 0), ("kick", 0)),
)
_LATER = ("wait", 60.0)


def seeds(subject):
    """The cases for `subject`'s kind."""
    found = [[("bring up", 0, 16, *queue), ("kick", 0)] for queue in _QUEUES]
    found += [[("bring up", 0, 16), *operations] for operations in _REGISTERS]
    for queue in range(2):
        again = ("kick", queue)
        found += [_with(_chain(queue, "direct", spoilt), again) for spoilt in _SPOILS]
        found += [_with(_chain(queue, "indirect", spoilt), again) for spoilt in _TABLES]
        found.append(_with(("chain", queue, (), (64, 64), "direct", ("loop", 0, 0), True)))
        found.append([("bring up", 1 << spec.F_RING_INDIRECT_DESC, 16), _chain(queue, "indirect", ())])
        found.append(_with(("index", queue, 17)))
        for end in (("reset",), ("set up", queue, 16, "", 0), ("available", queue, 0)):
            found.append(_with(_chain(queue, "mixed", ()), end))
    cases = []
    found += [_with(*operations) for operations in subject.seeds]
    for operations in found:
        for faults in ([], ["*:delay=1s"]):  # with a delay chains are in flight when the next thing happens
            cases.append(Case(subject.name, {**subject.settings(Draw(b"")), "faults": faults}, [*operations, _LATER]))
    return cases


def _with(*operations):
    return [("bring up", 0, 16), *operations]


def _chain(queue, layout, spoilt):
    return ("chain", queue, (bytes(16), bytes(14)), (64, 1), layout, spoilt, True)
