"""The views of KVM's own interrupt controllers and timers, on states that are made up."""

from __future__ import annotations

import errno
import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm import layout
from pyvmm.backends.terminal import COMMANDS, HELP_TEXT
from pyvmm.cli.ending import LOOKS
from pyvmm.debug import bits, chips, views, wakeups
from pyvmm.debug.gdb.monitor import Monitor
from pyvmm.debug.render import ranges
from pyvmm.debug.shell.commands import Commands
from pyvmm.debug.views import look, look_data
from pyvmm.debug.views.lapic import BASE_ENABLED, BASE_X2APIC, Apic
from pyvmm.errors import UsageError
from pyvmm.kvm import assembly, msrs
from pyvmm.slots import Slot
from tests.support.fakevcpu import CHANNEL_MEMBERS, PIC_MEMBERS, machine
from tests.unit.test_views import subject

CHIPS = ("irqchip", "lapic", "pit")


@pytest.fixture
def vm() -> SimpleNamespace:
    return subject(*machine())


def lines(vm: SimpleNamespace, *words: str) -> list[str]:
    return look(vm, words)


def apic(vm: SimpleNamespace, **registers: int) -> None:
    """Sets registers of vCPU 0's local APIC by name."""
    for name, value in registers.items():
        offset = chips.APIC[name].offset
        vm.vcpus[0].apic[offset : offset + 4] = value.to_bytes(4, "little")


# --- Names and numbers -----------------------------------------------------------------------------------------------


def mask(name: str, field: str) -> int:
    return next(it.mask for it in chips.APIC[name].fields if it.name == field)


def test_the_names_are_those_of_the_numbers_that_code_computes_with():
    assert chips.APIC_VECTORS["IRR"] == wakeups.IRR
    for name, offset in (
        ("SVR", wakeups.SVR),
        ("LVT_TIMER", wakeups.LVT_TIMER),
        ("LVT_LINT0", wakeups.LVT_LINT0),
        ("LVT_LINT0", assembly.LVT_LINT0),
        ("LVT_LINT1", assembly.LVT_LINT1),
        ("TIMER_INITIAL", wakeups.TIMER_INITIAL),
        ("TIMER_CURRENT", wakeups.TIMER_CURRENT),
    ):
        assert chips.APIC[name].offset == offset, name
    assert mask("SVR", "ENABLED") == wakeups.SVR_ENABLED
    assert mask("LVT_TIMER", "MASKED") == wakeups.LVT_MASKED == assembly.LVT_MASKED == wakeups.REDIRECTION_MASKED
    assert mask("LVT_TIMER", "MODE") == wakeups.LVT_TIMER_MODE
    timer, pin = chips.APIC["LVT_TIMER"], chips.APIC["LVT_LINT1"]
    assert timer.describe(wakeups.LVT_PERIODIC).endswith("MODE=periodic")
    assert timer.describe(wakeups.LVT_DEADLINE).endswith("MODE=TSC-deadline")
    assert "DELIVERY=NMI" in pin.describe(assembly.LVT_DELIVERY_NMI)
    assert "DELIVERY=ExtINT" in pin.describe(assembly.LVT_DELIVERY_EXTINT)
    assert len(chips.IOREDTBL) == layout.IOAPIC_PINS
    assert bits.names(BASE_X2APIC | BASE_ENABLED, bits.APIC_BASE) == "x2APIC enabled"


def test_every_register_has_its_section_and_no_two_fields_share_a_bit():
    for register in (*chips.APIC, *chips.IOREDTBL, *chips.pic_registers(0)):
        assert register.spec.startswith(("SDM volume 3A, 11.", "82093AA, 3.", "8259A ", "82371AB "))
        taken = 0
        for field in register.fields:
            assert not taken & field.mask, register
            taken |= field.mask
        assert taken < 1 << 8 * register.width


def test_the_members_are_those_of_the_kernels_structures():
    ffi = pytest.importorskip("pyvmm._native._kvm").ffi
    pic = {name for name, _ in ffi.typeof("struct kvm_pic_state").fields}
    assert set(PIC_MEMBERS) | {"elcr_mask"} == pic
    channel = {name for name, _ in ffi.typeof("struct kvm_pit_channel_state").fields}
    assert set(CHANNEL_MEMBERS) | {"mode", "count"} == channel
    assert ffi.sizeof("struct kvm_lapic_state") == chips.APIC.length
    assert ffi.typeof("struct kvm_ioapic_state").fields[-1][1].type.length == len(chips.IOREDTBL)


def test_neighbours_are_written_as_one():
    assert ranges([]) == []
    assert ranges([0, 1, 2, 5, 7, 8]) == ["0-2", "5", "7-8"]
    assert ranges([0x40, 0x41], hex) == ["0x40-0x41"]


# --- PICs and I/O APIC -----------------------------------------------------------------------------------------------


def test_a_pic_is_shown_by_its_lines(vm):
    master, slave = vm.vcpus[0].vm.pics
    master.irq_base, master.imr, master.isr, master.irr, master.last_irr = 0x20, 0xFE, 0x01, 0x12, 0x10
    slave.irq_base, slave.imr, slave.elcr = 0x28, 0xFF, 0x02
    assert lines(vm, "irqchip")[:12] == [
        "master PIC (8259A): IRQ0 to IRQ7 are vectors 0x20 to 0x27",
        "  IRR 0x12: IRQ1 IRQ4",
        "  ISR 0x01: IRQ0",
        "  IMR 0xfe: IRQ1 IRQ2 IRQ3 IRQ4 IRQ5 IRQ6 IRQ7",
        "  ELCR 0x00",
        "  lines that are high: IRQ4",
        "slave PIC (8259A): IRQ8 to IRQ15 are vectors 0x28 to 0x2f",
        "  IRR 0x00",
        "  ISR 0x00",
        "  IMR 0xff: IRQ8 IRQ9 IRQ10 IRQ11 IRQ12 IRQ13 IRQ14 IRQ15",
        "  ELCR 0x02: IRQ9",
        "  lines that are high: none",
    ]
    data = look_data(vm, ["irqchip"])
    assert (data["pic"]["first_vector"], data["pic"]["high"], data["pic2"]["first_line"]) == (0x20, [4], 8)
    assert data["pic2"]["registers"][3]["fields"] == ["IRQ9"]


def test_a_pic_says_what_is_unusual_about_it(vm):
    master, slave = vm.vcpus[0].vm.pics
    master.init_state, master.special_mask, master.poll = 2, 1, 1
    slave.priority_add, slave.auto_eoi, slave.read_reg_select = 3, 1, 1
    shown = lines(vm, "irqchip")
    assert shown[0].endswith("to 0x7; being initialized, ICW3 comes next; special mask mode; the next read polls")
    assert shown[6].endswith("IRQ11 comes before all others; ends interrupts itself (AEOI); the next read gives ISR")
    assert look_data(vm, ["irqchip"])["pic"]["modes"][0] == "being initialized, ICW3 comes next"


def test_a_pin_is_shown_with_its_entry_once_somebody_has_set_it(vm):
    ioapic = vm.vcpus[0].vm.ioapic
    ioapic.redirtbl[5] = 0x0100_0000_0000_C835
    ioapic.redirtbl[9] = 0x0000_0000_0001_A129
    vm.slots = [Slot("blk", 0, 0, 23), Slot("net", 0, 0, 23), Slot("rng", 0, 0, 10)]
    ioapic.irr, ioapic.id, ioapic.ioregsel = 1 << 5 | 1 << 23, 2, 0x1B
    assert lines(vm, "irqchip")[12:] == [
        "I/O APIC (82093AA): ID 0x2, at 0xfec00000, register 0x1b selected",
        "  IOREDTBL5 0x010000000000c835: VECTOR=0x35 DELIVERY=fixed MODE=logical POLARITY=high REMOTE_IRR TRIGGER=level"
        " DEST=0x1  <- requested",
        "  IOREDTBL9 0x000000000001a129: VECTOR=0x29 DELIVERY=lowest-priority MODE=physical POLARITY=low TRIGGER=level"
        " MASKED DEST=0x0  (acpi-pm)",
        "  IOREDTBL23 0x0000000000010000: VECTOR=0x0 DELIVERY=fixed MODE=physical POLARITY=high TRIGGER=edge"
        " MASKED DEST=0x0  (blk0, net0)  <- requested",
        "  pins that nobody has set, all masked: 0-4, 6-8, 10-22",
    ]
    pins = look_data(vm, ["irqchip"])["ioapic"]["pins"]
    assert len(pins) == layout.IOAPIC_PINS
    assert [pins[5][name] for name in ("pin", "vector", "masked", "requested")] == [5, 0x35, False, True]
    assert "REMOTE_IRR" in pins[5]["fields"] and pins[9]["masked"]
    assert [pins[pin]["devices"] for pin in (0, 1, 4, 10)] == [["pit"], [], ["serial"], ["rng0"]]


# --- Local APIC ------------------------------------------------------------------------------------------------------


def test_a_local_apic_is_shown_register_by_register_with_its_vectors(vm):
    apic(vm, ID=1 << 24, VERSION=0x50014, SVR=0x1FF, DFR=0xFFFF_FFFF, LVT_LINT0=0x700, LVT_LINT1=0x1_0400, TPR=0x20)
    apic(vm, ESR=0x41, ICR=0xC4610)
    for offset in (0x200 + 0x20, 0x100 + 0x70):
        vm.vcpus[0].apic[offset : offset + 4] = (0x8000_0003).to_bytes(4, "little")
    shown = lines(vm, "lapic")
    assert shown[0] == "local APIC of vCPU 0 at 0xfee00000: mode xAPIC"
    for line in (
        "  ID 0x01000000: ID=0x1",
        "  VERSION 0x00050014: VERSION=0x14 MAX_LVT=0x5",
        "  TPR 0x00000020: SUBCLASS=0x0 CLASS=0x2",
        "  DFR 0xffffffff: MODEL=flat",
        "  SVR 0x000001ff: VECTOR=0xff ENABLED",
        "  ESR 0x00000041: SEND_CHECKSUM RECEIVE_ILLEGAL_VECTOR",
        "  ICR 0x000c4610: VECTOR=0x10 DELIVERY=start-up MODE=physical ASSERT TRIGGER=edge TO=all-others",
        "  LVT_LINT0 0x00000700: VECTOR=0x0 DELIVERY=ExtINT POLARITY=high TRIGGER=edge",
        "  LVT_LINT1 0x00010400: VECTOR=0x0 DELIVERY=NMI POLARITY=high TRIGGER=edge MASKED",
        "  vectors in IRR: 0x40-0x41, 0x5f",
        "  vectors in ISR: 0xe0-0xe1, 0xff",
        "  vectors in TMR: none",
        "  timer: stopped",
    ):
        assert line in shown, line
    assert not any("CMCI" in line for line in shown)
    data = look_data(vm, ["lapic"])
    assert (data["irr"], data["isr"], data["tmr"], data["enabled"]) == (
        [0x40, 0x41, 0x5F],
        [0xE0, 0xE1, 0xFF],
        [],
        True,
    )
    apic(vm, VERSION=0x60014)
    assert any("LVT_CMCI" in line for line in lines(vm, "lapic"))


def test_the_modes_of_a_local_apic(vm):
    apic(vm, SVR=0xFF, LDR=0x0002_0001)
    assert lines(vm, "lapic")[0].endswith("mode xAPIC, switched off in SVR")
    vm.vcpus[0].apic_base = 0xFEE00D00
    apic(vm, SVR=0x1FF)
    shown = lines(vm, "lapic")
    assert shown[0].endswith("mode x2APIC")
    assert "  LDR 0x00020001" in shown and not any(line.startswith("  DFR") for line in shown)
    vm.vcpus[0].apic_base = 0xFEE00000
    assert lines(vm, "lapic")[0].endswith("mode disabled")
    vm.vcpus[0].broken = ("sregs",)
    assert lines(vm, "lapic")[0] == "local APIC of vCPU 0: mode unknown"
    assert look_data(vm, ["lapic"])["base"] is None


@pytest.mark.parametrize(
    ("registers", "said"),
    [
        ({"LVT_TIMER": 0x20040, "TIMER_INITIAL": 1_000_000, "TIMER_CURRENT": 250_000, "TIMER_DIVIDE": 3},
         "every 16 ms, 4 ms left"),
        ({"LVT_TIMER": 0x40, "TIMER_INITIAL": 100, "TIMER_CURRENT": 0, "TIMER_DIVIDE": 0xB},
         "once after 100 ns, which are over"),
        ({"LVT_TIMER": 0x40, "TIMER_INITIAL": 3_000, "TIMER_CURRENT": 1_500, "TIMER_DIVIDE": 0},
         "once after 6 us, 3 us left"),
        ({"LVT_TIMER": 0x20040, "TIMER_INITIAL": 0}, "stopped"),
        ({"LVT_TIMER": 0x40040}, "at TSC 0x5000, which is 0x4000 now"),
    ],
)  # fmt: skip
def test_what_the_timer_counts(vm, registers, said):
    vm.vcpus[0].msrs = {msrs.IA32_TSC_DEADLINE: 0x5000, msrs.IA32_TSC: 0x4000}
    apic(vm, **registers)
    assert lines(vm, "lapic")[-1] == f"  timer: {said}"


def test_a_deadline_that_is_not_set_or_not_given_is_said_to_be(vm):
    apic(vm, LVT_TIMER=0x40040)
    assert lines(vm, "lapic")[-1] == "  timer: its deadline could not be read"
    assert look_data(vm, ["lapic"])["timer"]["deadline"] is None
    vm.vcpus[0].msrs = {msrs.IA32_TSC_DEADLINE: 0}
    assert lines(vm, "lapic")[-1] == "  timer: no deadline"
    assert look_data(vm, ["lapic"])["timer"]["deadline"] == "0x0"
    vm.vcpus[0].broken = ("msrs",)
    assert lines(vm, "lapic")[-1] == "  timer: its deadline could not be read"


def test_the_divisor_is_the_one_that_the_registers_field_names(vm):
    (field,) = chips.APIC["TIMER_DIVIDE"].fields
    for value in (0, 1, 2, 3, 8, 9, 10, 11):
        apic(vm, TIMER_DIVIDE=value)
        assert f"BY={Apic(vm.vcpus[0], None).divisor}" == field.describe(value)


def test_a_local_apic_is_chosen_by_its_vcpu(vm):
    other, _ = machine()
    vm.vcpus.append(other)
    other.apic[0x23] = 7
    for words, vcpu in ((["lapic", "1"], 0), (["lapic"], 1)):
        assert "ID=0x7" in look(vm, words, vcpu=vcpu)[1]
        assert look_data(vm, words, vcpu=vcpu)["vcpu"] == 1
    for word, said in (("2", r"no vCPU 2 \(expected 0 to 1\)"), ("x", "'x' is not a number"), ("-1", "not a number")):
        with pytest.raises(UsageError, match=said):
            lines(vm, "lapic", word)


# --- PIT -------------------------------------------------------------------------------------------------------------


def test_the_pits_channels_are_shown(vm):
    pit = vm.vcpus[0].vm.pit
    vars(pit.channels[0]).update(mode=2, count=11932, rw_mode=3, gate=1)
    vars(pit.channels[2]).update(mode=0, count=0x10000, rw_mode=1, count_latched=1, latched_count=77, bcd=1)
    assert lines(vm, "pit") == [
        "PIT (8254), which counts at 1193182 Hz",
        "  channel 0 (IRQ0): mode 2, rate generator; count 11932, 10 ms, 99.998 Hz;"
        " low byte, then high byte; gate high",
        "  channel 1 (memory refresh of old PCs): not programmed",
        "  channel 2 (speaker, gate at port 0x61): mode 0, interrupt on terminal count; count 65536, 54.93 ms;"
        " low byte; BCD, which KVM counts as binary; gate low; count 77 latched",
    ]
    pit.flags = 3
    vars(pit.channels[1]).update(mode=9, status_latched=1, status=0x9E)
    shown = lines(vm, "pit")
    assert shown[0].endswith("1193182 Hz; an HPET has its interrupt; the speaker's output is on")
    assert "mode 9, no mode of an 8254" in shown[2] and shown[2].endswith("status 0x9e latched")
    data = look_data(vm, ["pit"])
    assert [channel["mode"] for channel in data["channels"]] == [2, 9, 0]
    assert (data["channels"][2]["latched_count"], data["channels"][0]["latched_count"]) == (77, None)


# --- By which way they are asked for ---------------------------------------------------------------------------------


def test_the_prompt_and_gdbs_monitor_show_them(vm, capsys):
    names = Commands(SimpleNamespace(vm=vm, vcpu=0)).namespace
    for words in (["irqchip"], ["lapic"], ["lapic", "0"], ["pit"]):
        names[words[0]](*map(int, words[1:]))
        expected = look(vm, words)
        assert capsys.readouterr().out.splitlines() == expected
        assert Monitor(vm).run(" ".join(words), 0, SimpleNamespace(physical=False)) == expected


def test_every_key_behind_the_escape_key_that_shows_a_view_is_in_its_help():
    for letter, name in LOOKS.items():
        assert name in views.VIEWS and letter in COMMANDS.values() and f"{{key}} {letter.upper()} " in HELP_TEXT


# --- What is not there -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.ENXIO, errno.EINVAL])
def test_a_vm_without_chips_in_kvm_says_so_in_one_sentence_each(vm, error):
    vm.vcpus[0].vm.broken = {"irqchip": error, "pit2": error}
    none = "this VM has none in KVM (KVM_CREATE_IRQCHIP and KVM_CREATE_PIT2 make them)"
    assert lines(vm, "pit") == [f"PIT: {none}"]
    assert lines(vm, "irqchip") == [f"{name}: {none}" for name in ("master PIC", "slave PIC", "I/O APIC")]
    assert look_data(vm, ["pit"]) is None
    assert look_data(vm, ["irqchip"]) == {"pic": None, "pic2": None, "ioapic": None}
    assert f"== pit\nPIT: {none}\n" in "\n".join(lines(vm, "all"))


def test_a_chip_that_kvm_does_not_give_is_named_with_the_reason(vm):
    vm.vcpus[0].vm.broken = {"irqchip": errno.EBADF}
    vm.vcpus[0].broken = ("lapic",)
    assert lines(vm, "irqchip")[0].startswith("master PIC could not be read: KVM_GET_IRQCHIP failed: Bad file")
    assert lines(vm, "lapic")[0].startswith("local APIC of vCPU 0 could not be read: KVM_GET_LAPIC failed")
    assert look_data(vm, ["lapic"]) is None


def test_a_vm_that_was_not_started_has_no_chips_to_show(vm):
    vm.vcpus = []
    for name in CHIPS:
        with pytest.raises(UsageError, match="has not been started"):
            lines(vm, name)
        with pytest.raises(UsageError, match="has not been started"):
            {"irqchip": views.irqchip_data, "lapic": views.lapic_data, "pit": views.pit_data}[name](vm)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_state_of_a_chip_makes_a_view_raise_or_go_on_for_ever(data):
    vm = subject(*machine())
    vcpu = vm.vcpus[0]
    byte = st.integers(0, 255)
    for pic in vcpu.vm.pics:
        vars(pic).update({name: data.draw(byte) for name in PIC_MEMBERS})
    vcpu.apic[:] = data.draw(st.sampled_from((bytes(1024), b"\xff" * 1024, b"\x55" * 1024))) or bytes(1024)
    raw = data.draw(st.binary(max_size=256))
    at = data.draw(st.integers(0, 1024 - len(raw)))
    vcpu.apic[at : at + len(raw)] = raw
    vcpu.apic_base = data.draw(st.integers(0, (1 << 64) - 1))
    ioapic, number = vcpu.vm.ioapic, st.integers(0, (1 << 64) - 1)
    ioapic.redirtbl = [data.draw(number) for _ in range(24)]
    ioapic.base_address, ioapic.irr = data.draw(number), data.draw(st.integers(0, (1 << 32) - 1))
    for channel in vcpu.vm.pit.channels:
        vars(channel).update({name: data.draw(byte) for name in (*CHANNEL_MEMBERS, "mode", "count")})
    for name in CHIPS:
        shown = lines(vm, name)
        assert len(shown) < 100 and max(map(len, shown)) < 300
        json.dumps(look_data(vm, [name]))
