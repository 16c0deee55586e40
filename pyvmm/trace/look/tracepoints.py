"""How long a vCPU ran the guest itself, from the kernel's tracepoints kvm:kvm_entry and kvm:kvm_exit.

Imports errors and fields. The events are the kernel's text: what tracefs has in `trace`, or what `trace-cmd report`
prints (Linux, Documentation/trace/ftrace.rst). pyvmm does not record them itself: that takes root, 100 ms for a run
that may be shorter, and they are events of all VMs of the host. docs/trace.md says how to.
"""

from __future__ import annotations

import os
import re

from pyvmm.errors import LoadError
from pyvmm.trace.fields import duration, grouped, percent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.trace.look.figures import Figures

TRACEFS = "/sys/kernel/tracing"
EVENT = re.compile(r"-(\d{1,10})\s.*?\s(\d{1,12})\.(\d{6,9}): kvm_(entry|exit):\s+(?:vcpu (\d{1,6}))?")
LOST = re.compile(r"LOST (\d{1,18}) EVENTS")
LONGEST = 1024
"""Characters of a line that are looked at."""
VCPUS = 4096
WHOLE = 0.9
"""Share of the run that the events must cover for KVM's part of it to be told."""


class GuestTime:
    """`guest` of the `covered` nanoseconds were between an entry and its exit; there were `entries`."""

    __slots__ = ("entries", "first", "guest", "last")

    def __init__(self) -> None:
        self.entries = 0
        self.guest = 0
        self.first = -1
        self.last = 0

    @property
    def covered(self) -> int:
        """Nanoseconds from the first event to the last."""
        return max(0, self.last - self.first)


class Events:
    """`vcpus` by number, and how many events the kernel has `lost`."""

    def __init__(self) -> None:
        self.vcpus: dict[int, GuestTime] = {}
        self.lost = 0


def read_events(path: str) -> Events:
    """The events in the text file `path`. Raises LoadError: it has none, or those of several VMs."""
    found = Events()
    threads: dict[str, int] = {}
    entered: dict[str, int] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            while line := file.readline(LONGEST):
                if event := EVENT.search(line):
                    _event(path, found, threads, entered, *event.groups())
                elif lost := LOST.search(line):
                    found.lost += int(lost[1])
                    entered.clear()  # the exits that belong to them may be among those
    except OSError as error:
        raise LoadError(path, f"cannot be read: {error.strerror}") from None
    if not found.vcpus:
        raise LoadError(path, "has no events kvm_entry and kvm_exit", expected=f"the text of {TRACEFS}/trace")
    return found


def _event(
    path: str,
    found: Events,
    threads: dict[str, int],
    entered: dict[str, int],
    thread: str,
    seconds: str,
    fraction: str,
    kind: str,
    number: str | None,
) -> None:
    at = int(seconds) * 1_000_000_000 + int(fraction.ljust(9, "0"))
    if kind == "entry" and number is not None and thread not in threads:
        vcpu = int(number)
        if vcpu in threads.values() or len(threads) >= VCPUS:
            raise LoadError(path, f"has events of several VMs: vCPU {vcpu} is on more than one thread")
        threads[thread] = vcpu
        found.vcpus[vcpu] = GuestTime()
    if thread not in threads:
        return
    time = found.vcpus[threads[thread]]
    time.first = at if time.first < 0 else time.first
    time.last = at
    if kind == "entry":
        entered[thread] = at
        time.entries += 1
    elif (since := entered.pop(thread, None)) is not None:
        time.guest += max(0, at - since)


def said(figures: Figures, events: Events | None) -> list[str]:
    """What the events say of the time in KVM_RUN, in sentences; without them, why nothing is said."""
    if events is None:
        return [f"KVM_RUN is not split into guest and KVM: {_why_not()}"]
    lines = []
    for vcpu, time in sorted(events.vcpus.items()):
        share = percent(time.guest, time.covered) or "0 %"
        text = (
            f"By kvm:kvm_entry and kvm:kvm_exit ({grouped(time.entries)} entries), vCPU {vcpu} ran the guest itself for"
        )
        text += f" {duration(time.guest)} of the {duration(time.covered)} that the events cover ({share})"
        tally = figures.vcpus.get(vcpu)
        if tally is not None and time.covered >= WHOLE * figures.length and time.guest <= tally.run:
            text += f"; KVM had the other {duration(tally.run - time.guest)} of its time in KVM_RUN"
        lines.append(f"{text}.")
    if events.lost:
        lines.append(f"The kernel lost {grouped(events.lost)} events, so the guest's time is too low.")
    return lines


def _why_not() -> str:
    """One line: there are no events, and whether this user could have them on this host."""
    if os.access(f"{TRACEFS}/events/kvm/kvm_entry", os.R_OK | os.X_OK):
        return "that takes events of the kernel's, --kvm-events (docs/trace.md)."
    who = "this user may not read" if os.path.isdir(TRACEFS) else "there is no"
    return f"that takes tracepoints, and {who} {TRACEFS}/events/kvm."
