"""The summary of a trace, as text of at most 100 columns and as data for programs.

Imports fields, figures, headline, tracepoints. Percentiles are those of histogram.py: within 3.2 %.
"""

from __future__ import annotations

from textwrap import wrap

from pyvmm.trace.fields import WIDTH, duration, grouped, number, percent, table, text
from pyvmm.trace.look.figures import Figures, by_count
from pyvmm.trace.look.headline import headline
from pyvmm.trace.look.tracepoints import said

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from pyvmm.trace.fields import Record
    from pyvmm.trace.look.figures import Cost, Tally
    from pyvmm.trace.look.histogram import Histogram
    from pyvmm.trace.look.tracepoints import Events

PERCENTILES = (50, 90, 99)
ROWS = 25
"""Rows of a table in the text; JSON has them all."""
COUNTERS = {
    "exits": "exits of the processor from the guest",
    "io_exits": "of them for port I/O",
    "mmio_exits": "of them for MMIO",
    "halt_exits": "HLT instructions",
    "irq_exits": "exits for the host's interrupts",
    "irq_window_exits": "exits to let an interrupt in",
    "request_irq_exits": "KVM_RUN ended for an interrupt window",
    "signal_exits": "KVM_RUN ended by a signal",
    "insn_emulation": "instructions that KVM emulated",
    "insn_emulation_fail": "instructions that KVM could not emulate",
    "fpu_reload": "the guest's FPU state loaded",
    "host_state_reload": "the host's state loaded",
    "hypercalls": "hypercalls",
    "irq_injections": "interrupts injected",
    "nmi_injections": "NMIs injected",
    "pf_taken": "page faults that KVM took",
    "pf_fixed": "page faults that KVM fixed",
    "pf_emulate": "page faults that KVM emulated",
    "pf_guest": "page faults passed on to the guest",
    "pf_mmio_spte_created": "pages found to be MMIO",
    "pf_spurious": "page faults found mended already",
    "tlb_flush": "TLB flushes",
    "invlpg": "INVLPG instructions",
    "halt_successful_poll": "halts that polling ended",
    "halt_attempted_poll": "halts that polled first",
    "halt_wait_ns": "time halted (ns)",
    "halt_poll_success_ns": "time polled to a good end (ns)",
    "halt_poll_fail_ns": "time polled in vain (ns)",
    "halt_wakeup": "halts ended by a wake-up",
    "remote_tlb_flush": "TLB flushes of other vCPUs",
    "mmu_cache_miss": "shadow pages made",
    "mmu_pte_write": "page tables of the guest written",
    "mmu_shadow_zapped": "shadow pages dropped",
    "mmu_pde_zapped": "shadow page directories dropped",
    "mmu_flooded": "shadow pages dropped for being written often",
    "mmu_recycled": "shadow pages dropped for want of room",
    "mmu_unsync": "page tables out of step",
    "req_event": "looks for interrupts to inject",
    "remote_tlb_flush_requests": "TLB flushes asked of all vCPUs",
    "preemption_other": "times that another thread had its CPU",
    "preemption_reported": "times that the guest was told so",
    "l1d_flush": "flushes of the L1 data cache",
    "guest_mode": "whether it runs a guest of its own",
    "directed_yield_attempted": "yields to another vCPU tried",
    "directed_yield_successful": "yields to another vCPU",
}
"""What KVM's counters count (Linux, arch/x86/include/asm/kvm_host.h, struct kvm_vcpu_stat and kvm_vm_stat)."""


def count(records: Any) -> Figures:
    """The figures of an iterable of records."""
    figures = Figures()
    for record in records:
        figures.add(record)
    return figures


def as_text(header: Record, figures: Figures, events: Events | None = None) -> str:
    """All of it, for people. `events` are the kernel's, where there are some."""
    blocks = [_top(header, figures), _reasons(figures), _devices(figures), _registers(figures), _vcpus(figures, events)]
    blocks += [_phases(figures), _queues(figures), _interrupts(figures), _kvm(figures)]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def machine(header: Record) -> str:
    """What the trace is of, in a line."""
    cpus, mem = number(header, "cpus"), number(header, "mem") >> 20
    began, _, zone = text(header, "began").partition(".")
    began = began.replace("T", " ") + (" UTC" if zone.endswith("+00:00") else "")
    parts = [text(header, "kernel").rpartition("/")[2], f"{cpus} CPU" + "s" * (cpus != 1) if cpus else ""]
    parts += [f"{mem} MiB" if mem else "", text(header, "kvm"), began, "pyvmm " + text(header, "pyvmm")]
    return ", ".join(part for part in parts if part.strip())


def ended(figures: Figures) -> str:
    """How the run ended, and whether the trace is whole."""
    said = (
        f"It ended with {figures.end[0]}, status {figures.end[1]}."
        if figures.end
        else ("The trace has no end: the process that wrote it was killed, or still runs.")
    )
    return said + (f" {grouped(figures.lost)} records were lost, so counts are too low." if figures.lost else "")


def _top(header: Record, figures: Figures) -> list[str]:
    return [*wrap(headline(figures), WIDTH), *wrap(machine(header), WIDTH), *wrap(ended(figures), WIDTH)]


def _reasons(figures: Figures) -> list[str]:
    rows = [
        [name, grouped(cost.count), percent(cost.count, figures.total.count), duration(cost.run), *_handled(cost)]
        for name, cost in by_count(figures.reasons)
    ]
    head = ["exit reason", "exits", "share", "KVM_RUN before", "handlers", "by C", "by Python"]
    return _titled("Exits by reason", head, rows, 1)


def _handled(cost: Tally) -> list[str]:
    return [duration(cost.handle), grouped(cost.by_c), grouped(cost.count - cost.by_c)]


def _latency(cost: Cost) -> list[str]:
    return [*(duration(cost.latency.percentile(share)) for share in PERCENTILES), duration(cost.latency.largest)]


def _devices(figures: Figures) -> list[str]:
    rows = [
        [name, grouped(cost.count), percent(cost.count, figures.total.count), *_handled(cost), *_latency(cost)]
        for name, cost in by_count(figures.kinds)
    ]
    head = ["device or reason", "exits", "share", "handlers", "by C", "by Python", "p50", "p90", "p99", "max"]
    return _titled("Exits by device (p50 to max: time in the handler)", head, rows, 1)


def _registers(figures: Figures) -> list[str]:
    rows = [
        [
            name,
            register,
            access,
            grouped(cost.count),
            percent(cost.count, figures.total.count),
            duration(cost.handle),
            grouped(cost.by_c),
            *_latency(cost)[::2],
            duration(cost.latency.largest),
        ]
        for (name, register, access), cost in by_count(figures.registers)
    ]
    head = ["device", "register", "access", "exits", "share", "handlers", "by C", "p50", "p99", "max"]
    return _titled("Exits by register", head, rows, 3)


def _vcpus(figures: Figures, events: Events | None) -> list[str]:
    rows = []
    for number_, cost in sorted(figures.vcpus.items()):
        run, handle = cost.run, cost.handle
        rest = max(0, figures.length - run - handle)
        cells = [(run, duration(run)), (handle, duration(handle)), (rest, duration(rest))]
        rows.append(
            ["others" if number_ < 0 else str(number_), grouped(cost.count)]
            + [cell for part, shown in cells for cell in (shown, percent(part, figures.length))]
        )
    head = ["vCPU", "exits", "in KVM_RUN", "", "in handlers", "", "rest", ""]
    title = "Time by vCPU (rest: between the two, recording, held, before the first and after the last exit)"
    notes = (f"  {line}" for text in said(figures, events) for line in wrap(text, WIDTH - 2))
    return [*_titled(title, head, rows, 1), *notes]


def _phases(figures: Figures) -> list[str]:
    rows = []
    for phase, length in figures.stages:
        most = ", ".join(f"{name} {grouped(count)}" for name, count in phase.most())
        rows.append([phase.name or "(start)", most, duration(phase.start), duration(length), grouped(phase.exits)])
    return _titled("Phases", ["phase", "most exits", "began at", "lasted", "exits"], rows, 2)


def _queues(figures: Figures) -> list[str]:
    rows = []
    for (name, index), queue in sorted(figures.queues.items()):
        events = queue.events
        rows.append(
            [name, str(index), grouped(events.get("notify", 0)), grouped(queue.requests)]
            + [grouped(events.get("interrupt", 0)), str(queue.deepest), duration(queue.latency.percentile(50))]
            + [duration(queue.latency.percentile(99)), duration(queue.latency.total)]
        )
    head = ["device", "queue", "notifications", "requests", "interrupts", "deepest", "p50", "p99", "handling"]
    return _titled("Queues (deepest: most requests in flight)", head, rows, 1)


def _interrupts(figures: Figures) -> list[str]:
    ranked = sorted(figures.interrupts.items(), key=lambda item: -item[1])
    rows = [[name, grouped(many)] for name, many in ranked]
    return _titled("Interrupts raised", ["source", "times"], rows, 1)


def _kvm(figures: Figures) -> list[str]:
    if not figures.counters:
        return ["KVM's own counters", "  Not shown: the trace has none (Linux 5.14 and newer have a statistics file)."]
    rows = [[name, COUNTERS.get(name, ""), grouped(many)] for name, many in counted(figures)]
    return [
        *_titled("KVM's own counters, from its statistics file", ["counter", "what", "grew by"], rows, 2),
        *(f"  {line}" for line in wrap(inside(figures), WIDTH - 2)),
    ]


def counted(figures: Figures) -> list[tuple[str, int]]:
    """KVM's counters that grew, those that are explained first, the largest first."""
    return sorted(figures.kvm.items(), key=lambda item: (item[0] not in COUNTERS, -item[1]))


def inside(figures: Figures) -> str:
    """How many exits KVM dealt with itself, without coming to user space, where its counters tell."""
    kvm, seen = figures.kvm, figures.total.count
    exits = kvm.get("exits", 0)
    if not exits or not seen:
        return ""
    accesses = sum(tally.count for reason, tally in figures.reasons.items() if reason in ("IO", "MMIO"))
    if exits < seen or kvm.get("io_exits", 0) + kvm.get("mmio_exits", 0) < accesses // 2:
        return (
            f"KVM counts {grouped(exits)} exits of the processor. Most of the {grouped(seen)} that came to user space"
            f" are not among them: KVM emulated {grouped(kvm.get('insn_emulation', 0))} of the guest's instructions,"
            " and what such a one asks of a device is no exit of the processor."
        )
    alone = exits - seen
    return (
        f"KVM counts {grouped(exits)} exits; {grouped(seen)} came to user space, so it dealt with"
        f" {grouped(alone)} ({percent(alone, exits)}) itself."
    )


def _titled(title: str, head: Sequence[str], rows: list[list[str]], left: int) -> list[str]:
    if not rows:
        return []
    more = [f"  and {grouped(len(rows) - ROWS)} more (--json has all)"] if len(rows) > ROWS else []
    return [title, *table(head, rows[:ROWS], left), *more]


def as_data(header: Record, figures: Figures, events: Events | None = None) -> Mapping[str, Any]:
    """All of it, for programs. Times are integers, nanoseconds."""
    return {
        "headline": headline(figures),
        "trace": {
            key: header[key] for key in ("format", "pyvmm", "began", "cpus", "mem", "kernel", "kvm") if key in header
        },
        "records": figures.records,
        "length": figures.length,
        "lost": figures.lost,
        "end": {"reason": figures.end[0], "status": figures.end[1]} if figures.end else None,
        "exits": _tally(figures.total),
        "reasons": {name: _tally(cost) for name, cost in by_count(figures.reasons)},
        "devices": {name: _cost(cost) for name, cost in by_count(figures.kinds)},
        "registers": [
            {"device": name, "register": register, "access": access, "spec": cost.spec, **_cost(cost)}
            for (name, register, access), cost in by_count(figures.registers)
        ],
        "vcpus": {str(vcpu): _tally(cost) for vcpu, cost in sorted(figures.vcpus.items())},
        "guest": {
            str(vcpu): {"guest": time.guest, "covered": time.covered, "entries": time.entries}
            for vcpu, time in sorted(events.vcpus.items())
        }
        if events
        else None,
        "phases": [
            {"name": phase.name, "t": phase.start, "length": length, "exits": phase.exits, "devices": phase.kinds}
            for phase, length in figures.stages
        ],
        "states": [{"t": t, "state": state} for t, state in figures.states],
        "queues": [
            {
                "device": name,
                "queue": index,
                "events": queue.events,
                "requests": queue.requests,
                "deepest": queue.deepest,
                "handle": queue.latency.total,
                "latency": _times(queue.latency),
            }
            for (name, index), queue in sorted(figures.queues.items())
        ],
        "interrupts": figures.interrupts,
        "kvm": figures.kvm,
    }


def _tally(cost: Tally) -> dict[str, Any]:
    by_python = cost.count - cost.by_c
    return {"count": cost.count, "run": cost.run, "handle": cost.handle, "c": cost.by_c, "python": by_python}


def _cost(cost: Cost) -> dict[str, Any]:
    return {**_tally(cost), "latency": _times(cost.latency)}


def _times(histogram: Histogram) -> dict[str, int]:
    return {**{f"p{share}": histogram.percentile(share) for share in PERCENTILES}, "max": histogram.largest}
