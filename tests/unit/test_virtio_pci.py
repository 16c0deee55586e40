"""virtio over PCI (virtio 1.3, 4.1), beside what every transport must do, which the tests of devices show."""

import threading
from itertools import pairwise

import pytest

from pyvmm.pci import spec as pci
from pyvmm.virtio import spec
from pyvmm.virtio.block import VirtioBlock
from pyvmm.virtio.console import VirtioConsole
from pyvmm.virtio.pci import COMMON_LENGTH, LENGTH, REGISTERS
from pyvmm.virtio.port import Port
from pyvmm.virtio.rng import VirtioRng
from tests.support.echo import CONFIG, Echo
from tests.support.headers import macros
from tests.support.memorydisk import MemoryDisk
from tests.support.registers import CHANGED, USED, WINDOW
from tests.support.virtiodriver import RAM, Driver, Ring

pytestmark = pytest.mark.transport("pci")
pin = pytest.mark.transport("pci-pin")
both = pytest.mark.transport("pci", "pci-pin")

COMMON, NOTIFY, ISR = spec.PCI_CAP_COMMON_CFG, spec.PCI_CAP_NOTIFY_CFG, spec.PCI_CAP_ISR_CFG
DEVICE, CFG = spec.PCI_CAP_DEVICE_CFG, spec.PCI_CAP_PCI_CFG
NONE = spec.MSI_NO_VECTOR
DEVICES = {
    "block": lambda: VirtioBlock(MemoryDisk()),
    "block, several queues": lambda: VirtioBlock(MemoryDisk(), queues=8),
    "console": lambda: VirtioConsole([Port(), Port("other")]),
    "entropy": VirtioRng,
    "echo": Echo,
}
each_device = pytest.mark.parametrize("name", DEVICES)


@pytest.fixture
def drivers():
    """Makes drivers, not brought up yet, and closes them."""
    made = []

    def make(device=None):
        made.append(Driver(device or Echo()))
        return made[-1]

    yield make
    for driver in made:
        driver.close()


@pytest.fixture
def echo(drivers):
    return drivers()


@pytest.fixture
def regs(echo):
    return echo.registers


def up(driver):
    """Brought up so that every used buffer is told of."""
    return driver.bring_up(without=[spec.F_RING_EVENT_IDX])


def works(driver):
    assert driver.request(0, [b"good"], [4]) == (4, b"good")


def recovers(driver):
    """Whatever was done: a driver that begins at the beginning is served."""
    driver.registers.place(WINDOW)
    if driver.registers.messages:
        driver.registers.use_messages()
    driver.bring_up()
    works(driver)
    assert driver.acknowledge() == USED


@pytest.mark.needs("gcc")
def test_constants_are_those_of_the_header(tmp_path):
    names = {
        f"VIRTIO_PCI_CAP_{name}": getattr(spec, f"PCI_CAP_{name}")
        for name in ("COMMON_CFG", "NOTIFY_CFG", "ISR_CFG", "DEVICE_CFG", "PCI_CFG", "BAR", "OFFSET", "LENGTH")
    } | {"VIRTIO_MSI_NO_VECTOR": NONE, "sizeof(struct virtio_pci_cap)": spec.PCI_CAP_DATA}
    offsets = {
        "device_feature_select": "device_feature_select",
        "device_feature": "device_feature",
        "driver_feature_select": "guest_feature_select",
        "driver_feature": "guest_feature",
        "config_msix_vector": "msix_config",
        "queue_driver_lo": "queue_avail_lo",
        "queue_driver_hi": "queue_avail_hi",
        "queue_device_lo": "queue_used_lo",
        "queue_device_hi": "queue_used_hi",
    }
    for register in REGISTERS:
        field = offsets.get(register.name, register.name)
        names[f"offsetof(struct virtio_pci_common_cfg, {field})"] = register.offset
        names[f"sizeof(((struct virtio_pci_common_cfg *)0)->{field})"] = register.width
    assert macros(tmp_path, "linux/virtio_pci.h", list(names)) == names


# --- 4.1.2, discovery -------------------------------------------------------------------------------------------------


@each_device
def test_the_vendor_id(drivers, name):
    """virtio 1.3, 4.1.2.1"""
    assert drivers(DEVICES[name]()).registers.read(pci.VENDOR_ID, 2) == 0x1AF4


@each_device
def test_the_device_id(drivers, name):
    """virtio 1.3, 4.1.2.1: the virtio device's, from 0x1040 on."""
    driver = drivers(DEVICES[name]())
    assert driver.registers.read(pci.DEVICE_ID, 2) == 0x1040 + driver.device.device_id


@each_device
def test_drivers_of_the_legacy_interface_are_kept_away(drivers, name):
    """virtio 1.3, 4.1.2.1, what a device SHOULD: revision, subsystem and device id."""
    regs = drivers(DEVICES[name]()).registers
    assert regs.read(pci.REVISION_ID, 1) >= 1
    assert regs.read(pci.SUBSYSTEM_ID, 2) >= 0x40 and regs.read(pci.SUBSYSTEM_VENDOR_ID, 2) != 0


def test_each_kind_has_its_class(drivers):
    classes = {name: drivers(make()).registers.read(pci.REVISION_ID, 4) >> 8 for name, make in DEVICES.items()}
    assert classes["block"] == 0x018000 and classes["console"] == 0x078000 and classes["entropy"] == 0xFF0000


@each_device
def test_the_function_is_as_pci_wants_it(drivers, name):
    """virtio 1.3, 4.1.1; PCI 3.0, 6.1, 6.2.5.1, 6.7: header type 0, BARs that can be sized, a list of capabilities."""
    regs = drivers(DEVICES[name]()).registers
    assert regs.read(pci.HEADER_TYPE, 1) == 0 and regs.read(pci.STATUS, 2) & pci.STATUS_CAP_LIST
    assert regs.read(pci.INTERRUPT_PIN, 1) == 1
    sizes = {}
    for bar in range(6):
        regs.write(pci.BASE_ADDRESS_0 + 4 * bar, 4, 0xFFFFFFFF)
        sizes[bar] = -regs.read(pci.BASE_ADDRESS_0 + 4 * bar) & 0xFFFFFFFF
    regs.place(WINDOW)
    assert sizes == {0: LENGTH, 1: 0x2000} | dict.fromkeys(range(2, 6), 0)
    assert sorted(data[0] for _, data in regs.capabilities()) == [9] * (len(regs.capabilities()) - 1) + [0x11]
    assert all(at % 4 == 0 and 0x40 <= at < at + len(data) <= 256 for at, data in regs.capabilities())


# --- 4.1.3, 4.1.4, layout and capabilities ----------------------------------------------------------------------------


@each_device
def test_every_capability_is_there_and_lies_in_its_bar(drivers, name):
    """virtio 1.3, 4.1.4.3.1, 4.1.4.4.1, 4.1.4.5.1, 4.1.4.6 and 4.1.4.9.1: one of each at least."""
    driver = drivers(DEVICES[name]())
    regs = driver.registers
    wanted = {COMMON, NOTIFY, ISR, CFG} | ({DEVICE} if driver.device.config() else set())
    assert set(regs.structures) == wanted
    taken = []
    for kind in wanted - {CFG}:
        bar, offset, length = regs.structures[kind]
        assert bar == 0 and length > 0 and offset + length <= LENGTH
        taken.append((offset, offset + length))
    taken.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(taken))


def test_a_capability_says_how_long_it_is(regs):
    """virtio 1.3, 4.1.4.2: with what follows its common part."""
    lengths = {data[3]: data[2] for _, data in regs.capabilities() if data[0] == pci.CAP_ID_VNDR}
    assert lengths == {COMMON: 16, ISR: 16, DEVICE: 16, NOTIFY: 20, CFG: 20}


@each_device
def test_structures_are_aligned(drivers, name):
    """virtio 1.3, 4.1.4.3.1, 4.1.4.4.1 and 4.1.4.6.1"""
    regs = drivers(DEVICES[name]()).registers
    for kind, align in ((COMMON, 4), (NOTIFY, 2), (DEVICE, 4)):
        assert regs.structures.get(kind, (0, 0, 0))[1] % align == 0


@each_device
def test_there_is_a_notification_for_every_queue(drivers, name):
    """virtio 1.3, 4.1.4.4.1: the multiplier is an even power of 2, and the length enough for all queues."""
    driver = drivers(DEVICES[name]())
    regs = driver.registers
    assert regs.stride in (1, 4, 16, 64)
    _, offset, length = regs.structures[NOTIFY]
    assert length >= 2
    for index in range(len(driver.device.queues)):
        regs.put_common("queue_select", index)
        at = regs.common("queue_notify_off") * regs.stride
        assert at + 2 <= length and offset + at == driver.transport.notify_ranges()[index]


def test_the_halves_of_an_address_are_independent(echo, regs):
    """virtio 1.3, 4.1.3.2"""
    assert echo.negotiate()
    for name, value in (("desc", 0x123456789ABCDEF0), ("driver", 0x1122334455667788), ("device", 0x99AABBCCDDEEFF00)):
        regs.put_common(f"queue_{name}_hi", value >> 32)
        assert (regs.common(f"queue_{name}_lo"), regs.common(f"queue_{name}_hi")) == (0, value >> 32)
        regs.put_common(f"queue_{name}_lo", value)
        assert (regs.common(f"queue_{name}_lo"), regs.common(f"queue_{name}_hi")) == (value & 0xFFFFFFFF, value >> 32)
    queue = echo.device.queues[0]
    assert (queue.descriptors, queue.driver) == (0x123456789ABCDEF0, 0x1122334455667788)
    assert queue.device == 0x99AABBCCDDEEFF00


# --- 4.1.4.3, common configuration ------------------------------------------------------------------------------------


def test_features_are_shown_for_any_selector(echo, regs):
    """virtio 1.3, 4.1.4.3.1: and none where no feature can be."""
    words = []
    for select in (0, 1, 2, 3, 63, 0x7FFFFFFF, 0xFFFFFFFF):
        regs.put_common("device_feature_select", select)
        assert regs.common("device_feature_select") == select
        words.append(regs.common("device_feature"))
    assert words[0] | words[1] << 32 == echo.device.offered and words[2:] == [0] * 5
    assert words[0] and words[1]


def test_accepted_features_are_shown(echo, regs):
    """virtio 1.3, 4.1.4.3.1"""
    for value in (1, 3):
        echo.put("Status", value)
    accepted = echo.offered & ~(1 << spec.F_RING_EVENT_IDX)
    echo.accept(accepted)
    words = []
    for select in (0, 1, 2, 0xFFFFFFFF):
        regs.put_common("driver_feature_select", select)
        assert regs.common("driver_feature_select") == select
        words.append(regs.common("driver_feature"))
    assert words == [accepted & 0xFFFFFFFF, accepted >> 32, 0, 0]
    regs.put_common("driver_feature", 0xFFFFFFFF)
    assert regs.common("driver_feature") == 0, "there are none"


def test_num_queues(drivers):
    for make in DEVICES.values():
        driver = drivers(make())
        assert driver.registers.common("num_queues") == len(driver.device.queues)


def test_a_changed_configuration_has_another_generation(echo, regs):
    """virtio 1.3, 4.1.4.3.1: also after any number of changes, which 8 bits could come round in."""
    for changes in (1, 255, 256, 257, 512):
        before = regs.common("config_generation"), echo.config(0, 4)
        for number in range(changes):
            echo.device.text = bytes([number & 0xFF, number >> 8]) + CONFIG[2:]
            echo.device.config_changed()
        assert echo.config(0, 4) != before[1]
        assert regs.common("config_generation") != before[0], changes
        assert regs.common("config_generation") == regs.common("config_generation")


def test_writing_0_to_the_status_resets(echo):
    """virtio 1.3, 4.1.4.3.1"""
    echo.bring_up()
    echo.send(1, [b"held"], [4])
    echo.put("Status", 0)
    assert echo.status == 0 and echo.device.held == [] and echo.device.features == 0


def test_a_reset_disables_every_queue(echo, regs):
    """virtio 1.3, 4.1.4.3.1"""
    echo.bring_up()

    def enabled():
        found = []
        for index in (0, 1):
            regs.put_common("queue_select", index)
            found.append(regs.common("queue_enable"))
        return found

    assert enabled() == [1, 1]
    echo.put("Status", 0)
    assert enabled() == [0, 0]


@pytest.mark.parametrize("select", [2, 3, 16, 255, 256, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF])
def test_a_queue_that_is_not_there(echo, regs, select):
    """virtio 1.3, 4.1.4.3.1: its size is 0; nothing can be done to it (CVE-2021-45464)."""
    assert echo.negotiate()
    regs.put_common("queue_select", select)
    for register in REGISTERS:
        if register.name.startswith("queue_") and register.name != "queue_select":
            regs.put_common(register.name, 1)
            assert regs.common(register.name) == (NONE if register.name == "queue_msix_vector" else 0)
    echo.put("Status", 15)
    recovers(echo)


@pytest.mark.parametrize("size", [3, 5, 15, 17, 31, 32, 0x7FFF, 0x8000, 0xFFFF])
def test_the_size_that_is_shown_is_0_or_a_power_of_2(echo, regs, size):
    """virtio 1.3, 4.1.4.3.1; a queue of a size that cannot be makes the device ask for a reset."""
    assert echo.negotiate()
    regs.put_common("queue_select", 0)
    assert regs.common("queue_size") == 16
    regs.put_common("queue_size", size)
    assert regs.common("queue_size") == 0
    regs.put_common("queue_enable", 1)
    assert regs.common("queue_enable") == 0 and echo.needs_reset
    recovers(echo)


def test_a_smaller_size_is_shown(echo, regs):
    assert echo.negotiate()
    for size in (8, 1, 16):
        regs.put_common("queue_size", size)
        assert regs.common("queue_size") == size


def test_what_describes_a_queue_is_frozen_once_it_is_enabled(echo, regs):
    """Nor does another size reach the engine after activation (CVE-2026-5747)."""
    assert echo.negotiate()
    echo.set_up_queues()
    fields = ["queue_size", *(register.name for register in REGISTERS if "_lo" in register.name)]
    for status in (11, 15, 15 | spec.STATUS_FAILED):
        echo.put("Status", status)
        for index in (0, 1):
            regs.put_common("queue_select", index)
            before = [regs.common(name) for name in fields]
            for value in (0, 8, 0x8000, 0xFFFFFFFF):
                for name in fields:
                    regs.put_common(name, value)
            assert [regs.common(name) for name in fields] == before
        if status == 15:
            works(echo)
    recovers(echo)


@pytest.mark.parametrize("value", [0, 2, 3, 0xFFFF])
def test_only_1_enables_and_nothing_disables_a_queue(echo, regs, value):
    """virtio 1.3, 4.1.4.3.2"""
    assert echo.negotiate()
    echo.set_up_queues()
    ring = echo.rings[0]
    regs.put_common("queue_select", 0)
    regs.put_common("queue_enable", value)
    assert regs.common("queue_enable") == 1
    echo.put("Status", 15)
    regs.put_common("queue_enable", value)
    works(echo)
    echo.negotiate()
    echo.put("QueueSel", 0)
    for name, gpa in (("desc", ring.descriptors), ("driver", ring.driver), ("device", ring.device)):
        regs.put_common(f"queue_{name}_lo", gpa)
    regs.put_common("queue_enable", value)
    assert regs.common("queue_enable") == 0


# --- 4.1.4.4, 4.1.5.2, notifications ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_queue_is_notified_at_its_address_whatever_is_written(echo, regs, size):
    """virtio 1.3, 4.1.5.2: as an ioeventfd without a value takes it."""
    echo.bring_up()
    for value in (0, 1, (1 << 8 * size) - 1):
        echo.rings[0].add(echo.heap, [b"x"], [1])
        regs.bus.write(regs.at(NOTIFY, 4 * 1), size, value)
        assert echo.rings[0].used() == []
        regs.bus.write(regs.at(NOTIFY, 0), size, value)
        assert len(echo.rings[0].used()) == 1


def test_notifications_beside_a_queue_are_none(echo, regs):
    echo.bring_up()
    for ring in echo.rings:
        ring.add(echo.heap, [b"x"], [1])
    for offset in [*(at for at in range(8) if at % 4), *range(8, 64), 0x7FF, 0xFFC, 0xFFF]:
        for size in (1, 2, 4, 8):
            regs.bus.write(regs.at(NOTIFY, offset), size, 0)
            assert regs.bus.read(regs.at(NOTIFY, offset), size) in (0, (1 << 8 * size) - 1)
    assert echo.device.served == 0
    echo.kick(0)
    assert echo.device.served == 1


def test_whoever_moves_doorbells_is_told_of_notifications_that_come_as_accesses(echo):
    rung = []
    echo.transport.rung = rung.append
    echo.kick(1)
    echo.bring_up()
    echo.kick(0)
    echo.kick(2)
    assert rung == [1, 0]


def test_notifications_before_driver_ok_and_after_a_reset_do_nothing(echo):
    for status in (0, 1, 3, 11):
        echo.put("Status", status)
        echo.kick(0)
        echo.kick(1)
    assert echo.device.served == 0
    echo.bring_up()
    works(echo)
    echo.rings[0].add(echo.heap, [b"x"], [1])
    echo.put("Status", 0)
    echo.kick(0)
    assert echo.device.served == 1
    recovers(echo)


# --- 4.1.4.5, the pin and the ISR status ------------------------------------------------------------------------------


def shown(regs):
    """The interrupt status bit of the status register."""
    return bool(regs.read(pci.STATUS, 2) & pci.STATUS_INTERRUPT)


@pin
def test_used_buffers_set_the_queue_bit_and_assert_the_pin(echo, regs):
    """virtio 1.3, 4.1.4.5.1: before the interrupt comes."""
    seen = []
    echo.on_interrupt = lambda: seen.append(echo.transport._isr)
    echo.bring_up()
    assert not regs.line.asserted
    echo.send(0, [b"x"])
    assert seen == [USED] and regs.line.asserted
    assert regs.isr() == USED


@pin
def test_a_changed_configuration_sets_the_configuration_bit(echo, regs):
    """virtio 1.3, 4.1.4.5.1: before the interrupt comes."""
    seen = []
    echo.on_interrupt = lambda: seen.append(echo.transport._isr)
    echo.bring_up()
    echo.device.config_changed()
    assert seen == [CHANGED] and regs.line.asserted
    assert regs.isr() == CHANGED


def test_a_changed_configuration_sets_the_configuration_bit_with_messages_too(echo, regs):
    """virtio 1.3, 4.1.4.5.1"""
    seen = []
    echo.on_interrupt = lambda: seen.append(echo.transport._isr)
    echo.bring_up()
    echo.send(0, [b"x"])
    echo.device.config_changed()
    assert seen == [0, CHANGED] and not regs.line.asserted and not shown(regs)


@pin
def test_the_status_register_shows_whether_the_isr_status_is_0(echo, regs):
    """virtio 1.3, 4.1.4.5.1: whether or not the pin may be asserted."""
    up(echo)
    assert not shown(regs)
    for disabled in (0, pci.COMMAND_INTX_DISABLE):
        regs.write(pci.COMMAND, 2, pci.COMMAND_MEMORY | disabled)
        echo.send(0, [b"x"])
        assert shown(regs) and regs.line.asserted == (not disabled)
        regs.isr()
        assert not shown(regs) and not regs.line.asserted
        echo.device.config_changed()
        assert shown(regs)
        regs.isr()


@pin
def test_reading_the_isr_status_resets_it_and_lowers_the_pin(echo, regs):
    """virtio 1.3, 4.1.4.5.1"""
    up(echo)
    echo.send(0, [b"x"])
    echo.device.config_changed()
    assert echo.interrupts == 1, "a level stays"
    assert regs.isr() == USED | CHANGED and not regs.line.asserted
    assert regs.isr() == 0
    echo.send(0, [b"x"])
    assert echo.interrupts == 2


@pin
def test_the_pin_follows_the_disable_bit(echo, regs):
    """PCI 3.0, 6.2.2"""
    echo.bring_up()
    regs.write(pci.COMMAND, 2, pci.COMMAND_MEMORY | pci.COMMAND_INTX_DISABLE)
    echo.send(0, [b"x"])
    assert not regs.line.asserted
    regs.write(pci.COMMAND, 2, pci.COMMAND_MEMORY)
    assert regs.line.asserted
    regs.write(pci.COMMAND + 1, 1, pci.COMMAND_INTX_DISABLE >> 8)
    assert not regs.line.asserted


@pin
def test_a_reset_lowers_the_pin(echo, regs):
    echo.bring_up()
    echo.send(0, [b"x"])
    echo.put("Status", 0)
    assert not regs.line.asserted and not shown(regs) and regs.isr() == 0


@pin
def test_enabling_messages_lowers_the_pin_and_disabling_them_raises_it(echo, regs):
    """A device that uses MSI-X does not use its pin (PCI 3.0, 6.8.3.3)."""
    echo.bring_up()
    echo.device.config_changed()
    assert regs.line.asserted
    regs.use_messages()
    assert not regs.line.asserted and not shown(regs)
    regs.write(regs.msix + pci.MSIX_FLAGS, 2, 0)
    assert regs.line.asserted and shown(regs)


@both
def test_nothing_is_left_for_a_data_plane_to_remind_of(echo):
    """A level stays until it is looked at, and a message arrives: unlike an edge (see `DataPlane`)."""
    echo.bring_up()
    echo.send(0, [b"x"])
    interrupts = echo.interrupts
    echo.transport.remind()
    assert echo.transport.pending == 0 and echo.interrupts == interrupts


# --- 4.1.5, messages --------------------------------------------------------------------------------------------------


@each_device
def test_there_is_a_vector_for_every_queue_and_one_for_the_configuration(drivers, name):
    """virtio 1.3, 4.1.5.1.2.1: the table's size is the number of vectors; two at least, and 2048 at most."""
    driver = drivers(DEVICES[name]())
    regs = driver.registers
    assert regs.vectors == len(driver.device.queues) + 1
    for vector in range(regs.vectors):
        regs.put_common("config_msix_vector", vector)
        assert regs.common("config_msix_vector") == vector
        driver.device.config_changed()
    regs.put_common("config_msix_vector", regs.vectors)
    assert regs.common("config_msix_vector") == NONE


def test_any_event_can_have_any_vector(echo, regs):
    """virtio 1.3, 4.1.5.1.2.1"""
    up(echo)
    for vector in range(regs.vectors):
        regs.put_common("config_msix_vector", vector)
        regs.put_common("queue_select", 0)
        regs.put_common("queue_msix_vector", vector)
        assert regs.common("config_msix_vector") == regs.common("queue_msix_vector") == vector
        regs.wires.signals.clear()
        echo.device.config_changed()
        works(echo)
        assert regs.wires.signals == [vector, vector]


def test_any_event_can_be_unmapped_and_sends_nothing_then(echo, regs):
    """virtio 1.3, 4.1.5.1.2.1, 4.1.5.3.1 and 4.1.5.4.1"""
    echo.bring_up()
    regs.put_common("config_msix_vector", NONE)
    for index in (0, 1):
        regs.put_common("queue_select", index)
        regs.put_common("queue_msix_vector", NONE)
        assert regs.common("queue_msix_vector") == NONE
    assert regs.common("config_msix_vector") == NONE
    echo.device.config_changed()
    works(echo)
    assert regs.wires.signals == [] and not regs.line.asserted


def test_used_buffers_of_an_unmapped_queue_send_nothing(echo, regs):
    """virtio 1.3, 4.1.5.3.1: others do."""
    echo.bring_up()
    regs.put_common("queue_select", 0)
    regs.put_common("queue_msix_vector", NONE)
    works(echo)
    assert echo.interrupts == 0
    echo.send(1, [b"held"], [4])
    echo.device.answer()
    assert regs.wires.signals == [2]


def test_a_changed_configuration_without_a_vector_sends_nothing(echo, regs):
    """virtio 1.3, 4.1.5.4.1"""
    echo.bring_up()
    regs.put_common("config_msix_vector", NONE)
    echo.device.config_changed()
    assert regs.wires.signals == [] and not regs.line.asserted
    works(echo)
    assert regs.wires.signals == [1]


def test_vectors_are_shown_as_they_were_written(echo, regs):
    """virtio 1.3, 4.1.5.1.2.1"""
    echo.bring_up()
    found = [regs.common("config_msix_vector")]
    for index in (0, 1):
        regs.put_common("queue_select", index)
        found.append(regs.common("queue_msix_vector"))
    assert found == [0, 1, 2]


def test_a_reset_unmaps_all_events(echo, regs):
    """virtio 1.3, 4.1.5.1.2.1"""
    echo.bring_up()
    regs.put_common("device_status", 0)
    found = [regs.common("config_msix_vector")]
    for index in (0, 1):
        regs.put_common("queue_select", index)
        found.append(regs.common("queue_msix_vector"))
    assert found == [NONE] * 3


@pytest.mark.parametrize("vector", [3, 4, 0x7FF, 0x800, 0x8000, 0xFFFE])
def test_a_vector_that_is_not_there_cannot_be_mapped(echo, regs, vector):
    """virtio 1.3, 4.1.5.1.2.1: which reads back as none."""
    echo.bring_up()
    regs.put_common("config_msix_vector", vector)
    regs.put_common("queue_select", 0)
    regs.put_common("queue_msix_vector", vector)
    assert regs.common("config_msix_vector") == regs.common("queue_msix_vector") == NONE
    echo.device.config_changed()
    works(echo)
    assert regs.wires.signals == []
    recovers(echo)


def test_a_masked_queue_tells_when_it_is_unmasked(echo, regs):
    echo.bring_up()
    regs.put_entry(1, 12, 1)
    works(echo)
    works(echo)
    assert regs.wires.signals == [] and regs.bus.read(regs.bases[1] + 0x1000, 8) == 2
    regs.put_entry(1, 12, 0)
    assert regs.wires.signals == [1]


def test_a_message_that_was_kept_does_not_come_after_a_reset(echo, regs):
    echo.bring_up()
    regs.put_entry(1, 12, 1)
    works(echo)
    echo.put("Status", 0)
    regs.put_entry(1, 12, 0)
    assert regs.wires.signals == []
    recovers(echo)


def test_completions_and_masking_from_two_threads_lose_nothing(echo, regs):
    """The data plane completes while a vCPU masks, unmasks and maps the vector."""
    up(echo)
    told, done, lost = threading.Event(), threading.Event(), []
    echo.on_interrupt = told.set

    def complete():
        while not done.is_set():
            told.clear()
            echo.transport.used_buffer(0)
            if not told.wait(5):
                lost.append(True)
                return

    thread = threading.Thread(target=complete)
    thread.start()
    for number in range(300):
        regs.put_entry(1, 12, 1)
        regs.put_entry(1, 8, 0x40 + number % 3)
        regs.put_entry(1, 12, 0)
    done.set()
    thread.join(10)
    assert lost == [] and not thread.is_alive()


# --- 4.1.4.9, access by way of the configuration space ----------------------------------------------------------------


class Window:
    """Accesses to BARs through the capability."""

    def __init__(self, regs):
        self.regs, self.at = regs, regs.caps[CFG]

    def choose(self, bar, offset, length):
        self.regs.write(self.at + spec.PCI_CAP_BAR, 1, bar)
        self.regs.write(self.at + spec.PCI_CAP_OFFSET, 4, offset)
        self.regs.write(self.at + spec.PCI_CAP_LENGTH, 4, length)

    def read(self, offset, length, bar=0):
        self.choose(bar, offset, length)
        return self.regs.read(self.at + spec.PCI_CAP_DATA, length if length in (1, 2, 4) else 4)

    def write(self, offset, length, value, bar=0):
        self.choose(bar, offset, length)
        self.regs.write(self.at + spec.PCI_CAP_DATA, length if length in (1, 2, 4) else 4, value)


@pytest.fixture
def window(regs):
    regs.write(pci.COMMAND, 2, 0)  # nothing is decoded
    yield Window(regs)
    regs.place(WINDOW)


def test_registers_can_be_read_and_written_through_configuration_space(echo, regs, window):
    """virtio 1.3, 4.1.4.9.1: with decoding off."""
    start = regs.structures[COMMON][1]
    for register in REGISTERS:
        at = start + register.offset
        if register.name in ("device_feature_select", "driver_feature_select", "queue_select"):
            window.write(at, register.width, 1)
        value = window.read(at, register.width)
        assert value == echo.transport.read(at, register.width), register.name
    window.write(start + REGISTERS["device_status"].offset, 1, 1)
    assert echo.device.status == 1
    config = regs.structures[DEVICE][1]
    assert bytes(window.read(config + at, 1) for at in range(12)) == CONFIG
    assert window.read(config, 4) == int.from_bytes(CONFIG[:4], "little")


def test_a_driver_can_do_everything_through_configuration_space(echo, regs, window):
    """virtio 1.3, 4.1.4.9.1: notifications and ISR status too."""
    common, notify, isr = (regs.structures[kind][1] for kind in (COMMON, NOTIFY, ISR))

    def put(name, value):
        window.write(common + REGISTERS[name].offset, REGISTERS[name].width, value)

    for status in (0, 1, 3):
        put("device_status", status)
    for word in (0, 1):
        put("driver_feature_select", word)
        put("driver_feature", echo.device.offered >> 32 * word & 0xFFFFFFFF & ~(1 << spec.F_RING_EVENT_IDX))
    put("device_status", 11)
    ring = Ring(echo.memory, 0, 16, 0x1000)
    echo.rings = [ring]
    for name, gpa in (("desc", ring.descriptors), ("driver", ring.driver), ("device", ring.device)):
        put(f"queue_{name}_lo", gpa)
        put(f"queue_{name}_hi", 0)
    put("queue_enable", 1)
    put("device_status", 15)
    head = ring.add(echo.heap, [b"good"], [4])
    window.write(notify, 2, 0)
    assert ring.used() == [(head, 4)] and ring.written(head) == b"good"
    regs.write(regs.msix + pci.MSIX_FLAGS, 2, 0)
    ring.add(echo.heap, [b"good"], [4])
    window.write(notify, 2, 0)
    assert regs.line.asserted
    assert window.read(isr, 1) == USED and not regs.line.asserted


@pytest.mark.parametrize(
    ("bar", "offset", "length"),
    [
        *((bar, 0, 4) for bar in (2, 5, 6, 255)),
        *((0, 0, length) for length in (0, 3, 5, 8, 0x80000000, 0xFFFFFFFF)),
        *((0, offset, 4) for offset in (1, 2, 3, LENGTH, LENGTH - 2, 0x7FFFFFFC, 0xFFFFFFFC, 0xFFFFFFFF)),
        *((0, 1, 2), (1, 0x2000, 4), (1, 0x1FFE, 4)),
    ],
)
def test_what_the_window_cannot_mean_reads_what_was_written_and_does_nothing(echo, regs, window, bar, offset, length):
    """virtio 1.3, 4.1.4.9.2 forbids it to drivers."""
    before = echo.device.status, bytes(echo.transport._msix._table)
    window.write(offset, length, 0x0F0F0F0F, bar)
    assert window.read(offset, length, bar) in (0x0F0F0F0F, 0x0F0F, 0x0F)
    assert (echo.device.status, bytes(echo.transport._msix._table)) == before
    recovers(echo)


def test_only_what_may_be_written_of_the_capability_is(regs):
    """virtio 1.3, 4.1.4: all other fields are read-only."""
    before = regs.capabilities()
    for at, data in before:
        if data[3] != CFG:
            for offset in range(len(data)):
                regs.write(at + offset, 1, 0xFF)
    regs.write(regs.caps[CFG], 4, 0xFFFFFFFF)
    regs.write(regs.msix + pci.MSIX_FLAGS, 2, pci.MSIX_FLAGS_ENABLE)
    assert regs.capabilities() == before


# --- Bad accesses, and recovery ---------------------------------------------------------------------------------------


WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)


def test_reads_of_every_width_and_place_are_bounded_and_change_nothing(echo, regs):
    echo.bring_up()
    base = regs.bases[0]
    registers = {(register.offset, register.width) for register in REGISTERS}
    for page in range(4):
        for offset in [*range(72), *range(0xFF0, 0x1000)]:
            for size in WIDTHS:
                if page * 0x1000 + offset + size > LENGTH:
                    continue
                value = regs.bus.read(base + page * 0x1000 + offset, size)
                assert 0 <= value < 1 << 8 * size
                if page == 0 and (offset, size) not in registers:
                    assert value == 0, (offset, size)
    assert echo.status == 15
    works(echo)


def test_writes_of_every_width_and_place_to_what_are_no_registers_change_nothing(echo, regs):
    """virtio 1.3, 4.1.3.1: a register takes its own width, aligned."""
    echo.bring_up()
    base = regs.bases[0]
    registers = {(register.offset, register.width) for register in REGISTERS}

    def everything():
        return [regs.bus.read(base + offset, width) for offset, width in sorted(registers)]

    before = everything()
    for value in (0, 0xFFFFFFFFFFFFFFFF):
        for offset in [*range(COMMON_LENGTH + 8), *range(0xFF8, 0x1008)]:
            for size in WIDTHS:
                if (offset, size) not in registers:
                    regs.bus.write(base + offset, size, value & (1 << 8 * size) - 1)
        for register in REGISTERS:
            if register.access == "r":
                regs.put_common(register.name, value)
    assert everything() == before
    works(echo)


def test_writes_of_every_width_and_place_do_no_harm(echo, regs):
    """Registers, configuration, notifications, MSI-X and the configuration space itself: whatever is written there."""
    for value in (0xFFFFFFFFFFFFFFFF, 0, 0x5555555555555555, 0x0101010101010101):
        echo.bring_up()
        for bar, length in ((0, LENGTH), (1, 0x2000)):
            for page in range(0, length, 0x1000):
                for offset in [*range(66), *range(0xFF9, 0x1000)]:
                    for size in WIDTHS:
                        regs.bus.write(regs.bases[bar] + page + offset, size, value & (1 << 8 * size) - 1)
        for offset in range(256):
            for size in (1, 2, 4):
                if offset % 4 + size <= 4:
                    regs.write(offset, size, value & (1 << 8 * size) - 1)
                    assert regs.read(offset, size) < 1 << 8 * size
        assert echo.memory.read(0, 16) == bytes(16)
        recovers(echo)


@pytest.mark.parametrize("offset", [12, 13, 0x3C, 0x40, 0x100, 0x200, 0xFF8, 0xFFC, 0xFFF])
def test_configuration_beyond_its_end_reads_0(echo, regs, offset):
    """CVE-2021-45464"""
    for size in (1, 2, 4, 8):
        if offset + size <= 0x1000:
            assert echo.config(offset, size) == 0
            echo.put_config(offset, size, (1 << 8 * size) - 1)
    assert echo.config(8, 8) == int.from_bytes(CONFIG[8:], "little")


def test_a_device_goes_on_where_its_windows_are_moved_to(echo, regs):
    """Also with requests in flight, and with messages that come while nothing is decoded."""
    echo.bring_up()
    echo.send(1, [b"held"], [4])
    regs.write(pci.COMMAND, 2, 0)
    assert list(regs.bus.ranges()) == []
    echo.device.answer()
    assert len(echo.rings[1].used()) == 1 and regs.wires.signals == [2]
    regs.place(WINDOW + 0x100000)
    works(echo)
    assert regs.moves[-1] == (1, regs.bases[1])


def test_reset_with_requests_in_flight_lets_nothing_land_afterwards(echo):
    """CVE-2026-45782"""
    echo.bring_up()
    echo.send(1, [b"held"], [4])
    chain = echo.device.held[0]
    echo.put("Status", 0)
    before = echo.memory.read(0, RAM)
    echo.device.queues[1].push(chain, 4)
    echo.device.tell(echo.device.queues[1])
    assert echo.memory.read(0, RAM) == before and echo.interrupts == 0
    recovers(echo)


def test_a_trace_can_name_registers(echo):
    assert echo.transport.register_at(20, True).describe(3) == "device_status 0x03: ACKNOWLEDGE DRIVER"
    assert echo.transport.register_at(4, True) is None and echo.transport.register_at(0x3000, True) is None
