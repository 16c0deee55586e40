"""The interrupt controllers of the whole VM, which are KVM's own: both PICs and the I/O APIC, with its pins.

Imports subject, render, layout, the names of their registers and KVM's constants. Follows the Intel 8259A and 82093AA
data sheets; what KVM tells of them is struct kvm_pic_state and struct kvm_ioapic_state (KVM API, 4.26).
"""

from __future__ import annotations

from pyvmm import layout
from pyvmm.debug import render
from pyvmm.debug.chips import IOREDTBL, PIC_LINES, pic_registers
from pyvmm.debug.views.subject import of_kvm, vcpu_of
from pyvmm.debug.wakeups import REDIRECTION_MASKED
from pyvmm.kvm.constants import KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from pyvmm.debug.views.subject import Subject
    from pyvmm.registers import Register

TITLES = {"pic": "master PIC", "pic2": "slave PIC", "ioapic": "I/O APIC"}
CHIPS = (("pic", KVM_IRQCHIP_PIC_MASTER), ("pic2", KVM_IRQCHIP_PIC_SLAVE), ("ioapic", KVM_IRQCHIP_IOAPIC))
PIT_GSI = 0
"""Where KVM's PIT goes (Linux, arch/x86/kvm/i8254.c, pit_do_work)."""
FIRST = {"pic": 0, "pic2": PIC_LINES}
"""The number of a PIC's first line."""
PIC_MODES = (
    ("auto_eoi", "ends interrupts itself (AEOI)"),
    ("rotate_on_auto_eoi", "rotates priorities as it does"),
    ("special_mask", "special mask mode"),
    ("special_fully_nested_mode", "special fully nested mode"),
    ("poll", "the next read polls"),
    ("read_reg_select", "the next read gives ISR"),
)
"""Members of kvm_pic_state that are not 0 in these (8259A data sheet, ICW4, OCW2, OCW3)."""


def irqchip(vm: Subject) -> list[str]:
    """Both PICs and the I/O APIC, a line for each register and for each pin that somebody has set.

    Raises UsageError for a VM that has not been started.
    """
    lines: list[str] = []
    owners = _owners(vm)
    for name, chip, why in _chips(vm):
        lines += [why] if chip is None else _ioapic(chip.ioapic, owners) if name == "ioapic" else _pic(name, chip.pic)
    return lines


def irqchip_data(vm: Subject) -> dict[str, Any]:
    """The same for programs: `pic`, `pic2` and `ioapic`, null where KVM does not give it. Raises UsageError."""
    data: dict[str, Any] = {}
    owners = _owners(vm)
    for name, chip, _ in _chips(vm):
        data[name] = None
        if chip is not None:
            data[name] = _ioapic_data(chip.ioapic, owners) if name == "ioapic" else _pic_data(chip.pic, FIRST[name])
    return data


def _chips(vm: Subject) -> Iterator[tuple[str, Any, str]]:
    """Each chip's name, its state or None, and why there is none."""
    kvm = vcpu_of(vm, 0).vm
    for name, chip in CHIPS:
        found, why = of_kvm(TITLES[name], kvm.get_irqchip, chip)
        yield name, None if found is None else found.chip, why


def _owners(vm: Subject) -> dict[int, list[str]]:
    """Who has which interrupt, as far as pyvmm gives them out: not a program's own devices."""
    found = {PIT_GSI: ["pit"], layout.SERIAL_IRQ: ["serial"], layout.SCI_IRQ: ["acpi-pm"]}
    for slot in vm.slots:
        found.setdefault(slot.gsi, []).append(slot.name)
    return found


# --- A PIC -----------------------------------------------------------------------------------------------------------


def _pic_values(pic: Any, first: int) -> list[tuple[Register, int]]:
    return [(register, int(getattr(pic, register.name.lower()))) for register in pic_registers(first)]


def _pic_modes(pic: Any, first: int) -> Iterator[str]:
    if pic.init_state:
        yield f"being initialized, ICW{pic.init_state + 1} comes next"
    if pic.priority_add:
        yield f"IRQ{first + pic.priority_add % PIC_LINES} comes before all others"
    yield from (words for member, words in PIC_MODES if getattr(pic, member))


def _high(pic: Any, first: int) -> list[int]:
    """The lines that are high: what KVM compares the next level with (Linux, arch/x86/kvm/i8259.c)."""
    return [first + at for at in range(PIC_LINES) if pic.last_irr >> at & 1]


def _pic(name: str, pic: Any) -> Iterator[str]:
    first, last = FIRST[name], PIC_LINES - 1
    lines = f"IRQ{first} to IRQ{first + last} are vectors {pic.irq_base:#x} to {pic.irq_base + last:#x}"
    yield f"{TITLES[name]} (8259A): {'; '.join((lines, *_pic_modes(pic, first)))}"
    yield from (f"  {register.describe(value)}" for register, value in _pic_values(pic, first))
    yield "  lines that are high: " + (" ".join(f"IRQ{line}" for line in _high(pic, first)) or "none")


def _pic_data(pic: Any, first: int) -> dict[str, Any]:
    return {
        "first_line": first,
        "first_vector": int(pic.irq_base),
        "high": _high(pic, first),
        "modes": list(_pic_modes(pic, first)),
        "registers": [render.register_dict(register, value) for register, value in _pic_values(pic, first)],
    }


# --- The I/O APIC ----------------------------------------------------------------------------------------------------


def _pins(ioapic: Any) -> Iterator[tuple[int, Register, int, bool]]:
    """Each pin's number and redirection entry, and whether a request is there."""
    for pin, register in enumerate(IOREDTBL):
        yield pin, register, int(ioapic.redirtbl[pin]), bool(ioapic.irr >> pin & 1)


def _ioapic(ioapic: Any, owners: dict[int, list[str]]) -> Iterator[str]:
    yield (
        f"I/O APIC (82093AA): ID {ioapic.id:#x}, at {ioapic.base_address:#x}, register {ioapic.ioregsel:#x} selected"
    )
    untouched = []
    for pin, register, value, requested in _pins(ioapic):
        if value == REDIRECTION_MASKED and not requested:
            untouched.append(pin)
        else:
            owner = f"  ({', '.join(owners[pin])})" if pin in owners else ""
            yield f"  {register.describe(value)}{owner}{'  <- requested' if requested else ''}"
    if untouched:
        yield f"  pins that nobody has set, all masked: {', '.join(render.ranges(untouched))}"


def _ioapic_data(ioapic: Any, owners: dict[int, list[str]]) -> dict[str, Any]:
    return {
        "id": int(ioapic.id),
        "base": hex(ioapic.base_address),
        "selected": hex(ioapic.ioregsel),
        "pins": [
            {
                "pin": pin,
                "devices": owners.get(pin, []),
                "requested": requested,
                "masked": bool(value & REDIRECTION_MASKED),
                "vector": value & 0xFF,
                **render.register_dict(register, value),
            }
            for pin, register, value, requested in _pins(ioapic)
        ],
    }
