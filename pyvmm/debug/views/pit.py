"""The PIT, which is KVM's own: what each of its three channels was told to do.

Imports subject and KVM's constants. Follows the Intel 8254 data sheet, "Control Word Format" and "Mode Definitions";
what KVM tells of it is struct kvm_pit_state2 (KVM API, 4.72). How far a channel has counted is not in that.
"""

from __future__ import annotations

from pyvmm.debug.views.subject import of_kvm, vcpu_of
from pyvmm.debug.wakeups import PIT_PERIODIC, PIT_UNSET
from pyvmm.kvm.constants import KVM_PIT_FLAGS_HPET_LEGACY, KVM_PIT_FLAGS_SPEAKER_DATA_ON

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.debug.views.subject import Subject

PIT_HZ = 1_193_182
USES = ("IRQ0", "memory refresh of old PCs", "speaker, gate at port 0x61")
MODES = (
    "interrupt on terminal count", "hardware retriggerable one-shot", "rate generator", "square wave mode",
    "software triggered strobe", "hardware triggered strobe",
)  # fmt: skip
ACCESSES = {1: "low byte", 2: "high byte", 3: "low byte, then high byte"}
"""By RW1 and RW0 of the control word."""
FLAGS = {
    KVM_PIT_FLAGS_HPET_LEGACY: "an HPET has its interrupt",
    KVM_PIT_FLAGS_SPEAKER_DATA_ON: "the speaker's output is on",
}


def pit(vm: Subject) -> list[str]:
    """A line for each channel. Raises UsageError for a VM that has not been started."""
    found, why = of_kvm("PIT", vcpu_of(vm, 0).vm.get_pit2)
    if found is None:
        return [why]
    flags = "".join(f"; {words}" for flag, words in FLAGS.items() if found.flags & flag)
    return [
        f"PIT (8254), which counts at {PIT_HZ} Hz{flags}",
        *(f"  channel {at} ({use}): {_text(found.channels[at])}" for at, use in enumerate(USES)),
    ]


def pit_data(vm: Subject) -> dict[str, Any] | None:
    """The same for programs; null where KVM does not give it. Raises UsageError."""
    found, _ = of_kvm("PIT", vcpu_of(vm, 0).vm.get_pit2)
    if found is None:
        return None
    return {
        "hertz": PIT_HZ,
        "flags": [words for flag, words in FLAGS.items() if found.flags & flag],
        "channels": [_data(found.channels[at]) for at in range(len(USES))],
    }


def _text(channel: Any) -> str:
    if channel.mode == PIT_UNSET:
        return "not programmed"
    count = max(1, int(channel.count))
    rate = f", {PIT_HZ / count:.5g} Hz" if channel.mode in PIT_PERIODIC else ""
    parts = [
        f"mode {channel.mode}, {_mode(channel)}",
        f"count {channel.count}, {count * 1000 / PIT_HZ:.4g} ms{rate}",
        ACCESSES.get(channel.rw_mode, "no access"),
    ]
    if channel.bcd:
        parts.append("BCD, which KVM counts as binary")
    parts.append("gate high" if channel.gate else "gate low")
    if channel.count_latched:
        parts.append(f"count {channel.latched_count} latched")
    if channel.status_latched:
        parts.append(f"status {channel.status:#04x} latched")
    return "; ".join(parts)


def _mode(channel: Any) -> str:
    return MODES[channel.mode] if channel.mode < len(MODES) else "no mode of an 8254"


def _data(channel: Any) -> dict[str, Any]:
    """`count` is 65536 where 0 was written."""
    unset = channel.mode == PIT_UNSET
    return {
        "mode": None if unset else int(channel.mode),
        "mode_name": None if unset else _mode(channel),
        "count": int(channel.count),
        "access": ACCESSES.get(channel.rw_mode),
        "bcd": bool(channel.bcd),
        "gate": bool(channel.gate),
        "latched_count": int(channel.latched_count) if channel.count_latched else None,
        "latched_status": int(channel.status) if channel.status_latched else None,
    }
