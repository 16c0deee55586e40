"""The driver lint: a good driver has no findings, and each rule is found when a driver breaks it on purpose."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from struct import pack

import pytest

from pyvmm.pci import spec as pci
from pyvmm.virtio import spec
from pyvmm.virtio.balloon import VirtioBalloon
from pyvmm.virtio.block import VirtioBlock
from pyvmm.virtio.configspace import FIELDS
from pyvmm.virtio.console import VirtioConsole
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.lint import RULES, Findings, LintedMmio, LintedPci
from pyvmm.virtio.lint.findings import LIMIT
from pyvmm.virtio.net import VirtioNet
from pyvmm.virtio.p9 import Virtio9p
from pyvmm.virtio.port import Port
from pyvmm.virtio.rng import VirtioRng
from pyvmm.virtio.saving import restore_device, save_device
from pyvmm.virtio.vsock import VirtioVsock
from tests.support.echo import Echo
from tests.support.memorydisk import MemoryDisk
from tests.support.registers import BASE, TRANSPORTS
from tests.support.virtiodriver import HEAP, INDIRECT, NEXT, RAM, RINGS, WRITE
from tests.support.virtiodriver import Driver as GoodDriver

EVENT_IDX, INDIRECT_DESC, VERSION_1 = 1 << spec.F_RING_EVENT_IDX, 1 << spec.F_RING_INDIRECT_DESC, 1 << spec.F_VERSION_1
NET = VERSION_1 | 1 << spec.NET_F_MAC | 1 << spec.NET_F_MRG_RXBUF


class Other(Echo):
    """Echo, of a kind that nobody knows: nothing is expected of its configuration and its chains."""

    device_id = 63


class NoQueues(VirtioDevice):
    """All that it has is registers."""

    device_id = 63


class Network:
    """A back-end of a network device that takes frames and has none."""

    vnet_header = True

    def fileno(self):
        return 1000

    def offloads(self, *kinds):
        pass

    def receive(self):
        return None

    def send(self, frame):
        return True

    def close(self):
        pass


class Sockets:
    """Of a host that nobody connects to, and that connects to nobody."""

    on_call: Callable[..., None] = print

    def fileno(self):
        return 1000

    def poll(self):
        return []

    def tick(self, now):
        pass

    def deadline(self):
        return None

    def connect(self, port):
        raise ConnectionRefusedError

    def close(self):
        pass


class Server:
    """Of a share without files."""

    in_session = False
    report: Callable[[str], None] | None = None

    def serve(self, exchange):
        return exchange.write(bytes(7))

    def reset(self):
        pass

    def close(self):
        pass


DEVICES = {
    "other": Other,
    "none": lambda: NoQueues("none"),
    "blk": lambda: VirtioBlock(MemoryDisk(), queues=2),
    "read-only": lambda: VirtioBlock(MemoryDisk(readonly=True)),
    "net": lambda: VirtioNet(Network(), mac=bytes.fromhex("525400123456"), mtu=1500),
    "console": lambda: VirtioConsole([Port(), Port("other")]),
    "rng": VirtioRng,
    "balloon": VirtioBalloon,
    "vsock": lambda: VirtioVsock(Sockets()),
    "9p": lambda: Virtio9p(Server(), "tag"),
}


class Judged(GoodDriver):
    """A driver that does all as it must, and is judged: `findings` has what it did wrong on purpose."""

    def __init__(self, device="other", transport="mmio"):
        self.findings = Findings()
        linted = LintedMmio if transport == "mmio" else LintedPci
        make = staticmethod(partial(linted, findings=self.findings))
        super().__init__(DEVICES[device](), transport=type("Linted", (TRANSPORTS[transport],), {"make": make}))
        self.mmio = transport == "mmio"
        self.lint = self.device.lint

    def identify(self):
        for register in ("MagicValue", "Version", "DeviceID") if self.mmio else ():
            self.get(register)

    def reset(self):
        """As a driver begins: the device has been found, and reset."""
        self.identify()
        self.put("Status", 0)
        while self.status:
            pass

    def negotiate(self, features=None, without=()):
        self.reset()
        self.put("Status", 1)
        self.put("Status", 3)
        offered = self.offered
        self.accept(
            sum(
                1 << bit
                for bit in range(64)
                if (offered if features is None else features) >> bit & 1 and bit not in without
            )
        )
        self.put("Status", 11)
        return bool(self.status & spec.STATUS_FEATURES_OK)

    def read_configuration(self):
        """Every field that is there, as 2.5.1 says."""
        for field in FIELDS.get(self.device.device_id, ()):
            if field.feature is not None and not self.device.offered >> field.feature & 1:
                continue
            before = None
            while before is None or before != self.get("ConfigGeneration"):
                before = self.get("ConfigGeneration")
                for element in range(min(field.count, 3)):
                    for half in range(0, field.width, 4):
                        at, size = field.offset + element * field.width + half, min(field.width, 4)
                        assert self.config(at, size) == int.from_bytes(self.device.config()[at : at + size], "little")

    def set_up_queue(self, index, ring):
        self.put("QueueSel", index)
        self.get("QueueSizeMax")
        super().set_up_queue(index, ring)

    @property
    def found(self):
        return self.findings.names()

    def descriptors(self, *chain, queue=0, head=0):
        """A chain of raw descriptors (gpa, length, flags, next) from `head` on, made available and notified."""
        ring = self.rings[queue]
        for index, descriptor in enumerate(chain, head):
            ring.descriptor(index, *descriptor)
        ring.make_available(head)
        self.kick(queue)


def test_a_good_driver_has_no_findings():
    for name in DEVICES.keys() - {"none"}:
        for transport in TRANSPORTS:
            driver = Judged(name, transport)
            driver.bring_up()
            driver.read_configuration()
            if name == "other":
                for number in range(40):
                    driver.request(0, [b"question"] * 3, [9, 20], indirect=bool(number & 1))
                    driver.acknowledge()
                    driver.send(1, [b"held"], [4])
                    driver.device.answer()
                    driver.rings[1].used()
                    driver.acknowledge()
            elif name in ("blk", "read-only"):
                for number in range(300):
                    request = pack("<IIQ", spec.BLK_T_IN, 0, number % 8)
                    driver.request(0, [request], [512, 1])
                    driver.acknowledge()
                driver.request(0, [pack("<IIQ", spec.BLK_T_FLUSH, 0, 0)], [1])
            elif name == "net":
                for _ in range(5):
                    driver.send(0, [], [2048])
                    driver.request(1, [bytes(12), bytes(60)])
            elif name == "console":
                for queue in (0, 2, 4):
                    driver.send(queue, [], [64])
                for queue, data in ((1, b"hello\n"), (3, pack("<IHH", 0, spec.CONSOLE_DEVICE_READY, 1)), (5, b"more")):
                    driver.send(queue, [data])
            elif name == "rng":
                assert driver.request(0, [], [16])[0] == 16
            elif name == "balloon":
                driver.request(0, [pack("<II", 16, 17)])
                driver.send(2, [bytes(10)])
                driver.put_config(4, 4, 2)
            elif name == "vsock":
                driver.send(0, [], [4096])
                driver.request(1, [pack("<QQIIIHHIII", 3, 2, 1000, 52, 0, 1, spec.VSOCK_OP_REQUEST, 0, 4096, 0)])
            else:
                driver.request(0, [b"message"], [64])
            driver.put("Status", 0)
            assert driver.status == 0
            driver.bring_up()
            driver.lint.settle()
            assert [str(finding) for finding in driver.findings] == [], (name, transport)
            assert driver.findings.accesses > 40
            driver.close()


# --- One driver for each rule, which breaks it ------------------------------------------------------------------------

PLANTED: dict[tuple[str, str, str], tuple[Callable[..., None], str, int | None, str | None, set[str]]] = {}
"""By rule, transport and name: who breaks the rule, the device, where it is to be found, and what else is."""


def plants(rule, device="other", transport="mmio", queue=None, register=None, also=()):
    """Declares a function that has a driver of `device` break `rule`, the rules `also`, and no others."""

    def declare(function):
        PLANTED[rule, transport, function.__name__] = function, device, queue, register, {rule, *also}
        return function

    return declare


@plants("identity-unread", register="Status")
def not_looked_at(driver):
    driver.put("Status", 0)
    driver.put("Status", 1)


@plants("reset-missing", register="Status")
def not_reset(driver):
    driver.identify()
    driver.put("Status", 1)


@plants("reset-not-awaited", transport="pci", register="device_status")
def not_awaited(driver):
    driver.put("Status", 0)
    driver.put("Status", 1)


@plants("status-order", register="Status")
def driver_before_acknowledge(driver):
    driver.reset()
    driver.put("Status", 2)


@plants("status-order", register="Status", also=("version-1-missing",))
def features_ok_before_driver(driver):
    driver.reset()
    driver.put("Status", 1)
    driver.put("Status", 9)


@plants("status-cleared", register="Status")
def status_written_as_a_bit(driver):
    driver.bring_up()
    driver.put("Status", 4)


@plants("status-unknown", register="Status")
def unknown_bit(driver):
    driver.reset()
    driver.put("Status", 0x11)


@plants("status-after-failed", register="Status")
def goes_on_after_failing(driver):
    driver.reset()
    driver.put("Status", 0x81)
    driver.put("Status", 0x83)


@plants("features-ok-skipped", register="Status", also=("driver-ok-without-queues",))
def legacy_sequence(driver):
    driver.reset()
    driver.put("Status", 1)
    driver.put("Status", 3)
    driver.accept(driver.offered)
    driver.put("Status", 7)


@plants("features-ok-unread", register="Status")
def not_read_back(driver):
    driver.reset()
    driver.put("Status", 1)
    driver.put("Status", 3)
    driver.accept(driver.offered)
    driver.put("Status", 11)
    driver.set_up_queues()
    driver.put("Status", 15)


@plants("features-ok-unread", register="Status", also=("driver-ok-without-queues",))
def both_at_once(driver):
    driver.reset()
    driver.put("Status", 1)
    driver.put("Status", 3)
    driver.accept(driver.offered)
    driver.put("Status", 15)


@plants("features-ok-refused", register="Status", also=("driver-ok-without-queues", "version-1-missing"))
def does_not_mind_being_refused(driver):
    assert not driver.negotiate(features=EVENT_IDX)
    driver.put("Status", 15)


@plants("driver-ok-without-queues", register="Status")
def no_queues(driver):
    driver.negotiate()
    driver.put("Status", 15)


@plants("queue-after-driver-ok", queue=1, register="QueueSize")
def queue_comes_late(driver):
    driver.negotiate()
    driver.set_up_queues()
    driver.put("QueueSel", 1)
    driver.put("QueueReady", 0)
    driver.get("QueueReady")
    driver.put("Status", 15)
    driver.put("QueueSize", 8)


@plants("features-unread", register="DriverFeatures")
def offers_unread(driver):
    driver.reset()
    driver.put("Status", 1)
    driver.put("Status", 3)
    driver.accept(VERSION_1)


@plants("feature-not-offered", register="DriverFeatures")
def packed_ring(driver):
    driver.negotiate(features=driver.offered | 1 << spec.F_RING_PACKED)


@plants("feature-requires", "net", register="Status")
def segments_without_checksums(driver):
    driver.negotiate(features=driver.offered & ~(1 << spec.NET_F_CSUM))


@plants("version-1-missing", register="Status")
def no_version(driver):
    driver.negotiate(without=[spec.F_VERSION_1])


@plants("features-early", register="DriverFeatures")
def features_before_driver(driver):
    driver.reset()
    driver.put("Status", 1)
    driver.accept(driver.offered)


@plants("features-late", register="DriverFeatures")
def features_after_ok(driver):
    driver.bring_up()
    driver.accept(VERSION_1)


@plants("features-unselected", register="DeviceFeatures")
def word_not_selected(driver):
    driver.reset()
    driver.get("DeviceFeatures")


@plants("config-torn", "blk", register="capacity")
def no_generation(driver):
    driver.bring_up()
    driver.config(0, 4), driver.config(4, 4)


@plants("config-torn", "net", "pci", register="mac")
def generation_before_alone(driver):
    driver.negotiate()
    driver.get("ConfigGeneration")
    for byte in range(6):
        driver.config(byte, 1)
    driver.set_up_queues()
    driver.put("Status", 15)


@plants("config-torn", "9p", register="tag")
def generation_after_alone(driver):
    driver.negotiate()
    for byte in range(3):
        driver.config(2 + byte, 1)
    driver.get("ConfigGeneration")


@plants("config-not-offered", "blk", register="size_max")
def size_max(driver):
    driver.bring_up()
    driver.config(8, 4)


@plants("config-width", "blk", register="blk_size")
def byte_of_a_word(driver):
    driver.bring_up()
    driver.config(20, 1)


@plants("config-width", "blk", "pci", register="capacity", also=("config-torn",))
def quadword(driver):
    driver.bring_up()
    driver.config(0, 8)


@plants("config-outside", "blk", register="")
def behind_its_end(driver):
    driver.bring_up()
    driver.config(96, 4)


@plants("config-outside", "blk", register="")
def across_its_end(driver):
    driver.bring_up()
    driver.config(len(driver.device.config()) - 2, 4)


@plants("config-read-only", "net", register="mac")
def own_address(driver):
    driver.bring_up()
    driver.put_config(0, 1, 0x52)


@plants("config-early-write", "balloon", "pci", register="actual")
def balloon_before_features(driver):
    driver.reset()
    driver.put("Status", 3)
    driver.put_config(4, 4, 1)


@plants("register-width", register="Status")
def byte_of_a_register(driver):
    driver.registers.get("Status", 1)


@plants("register-width", transport="pci", register="queue_size")
def word_of_a_half(driver):
    at = driver.registers.at(spec.PCI_CAP_COMMON_CFG, 24)
    driver.registers.bus.read(at, 4)


@plants("register-unknown", register="")
def legacy_register(driver):
    driver.get("MagicValue")
    driver.registers.bus.write(BASE + 0x28, 4, 4096)


@plants("register-read-only", register="MagicValue")
def magic_written(driver):
    driver.put("MagicValue", 1)


@plants("register-read-only", transport="pci", register="num_queues")
def number_written(driver):
    driver.registers.put_common("num_queues", 1)


@plants("register-write-only", register="QueueSel")
def selector_read(driver):
    driver.get("QueueSel")


@plants("shared-memory", register="SHMSel")
def shared_memory(driver):
    driver.put("SHMSel", 0)


@plants("queue-early", queue=0, register="QueueSize")
def queue_before_features(driver):
    driver.reset()
    driver.put("Status", 1)
    driver.put("Status", 3)
    driver.put("QueueSize", 8)


@plants("queue-early", queue=0, register="QueueReady")
def enabled_before_features(driver):
    driver.reset()
    driver.put("Status", 1)
    driver.put("Status", 3)
    driver.put("QueueReady", 1)


@plants("queue-unknown", register="QueueSize")
def third_queue(driver):
    driver.negotiate()
    driver.put("QueueSel", 2)
    driver.put("QueueSize", 8)


@plants("queue-size", queue=0, register="QueueSize")
def odd_size(driver):
    driver.negotiate()
    driver.put("QueueSize", 12)


@plants("queue-size", transport="pci", queue=0, register="queue_size")
def large_size(driver):
    driver.negotiate()
    driver.put("QueueSize", 32)


def queue_at(driver, descriptors=RINGS, available=RINGS + 0x400, used=RINGS + 0x800):
    driver.negotiate()
    driver.put("QueueSel", 0)
    for part, gpa in (("Desc", descriptors), ("Driver", available), ("Device", used)):
        driver.put(f"Queue{part}Low", gpa)
    driver.put("QueueReady", 1)


@plants("queue-misaligned", queue=0)
def used_ring_between(driver):
    queue_at(driver, used=RINGS + 0x802)


@plants("queue-outside-ram", queue=0)
def table_nowhere(driver):
    queue_at(driver, descriptors=RAM)


@plants("queue-overlap", queue=0)
def rings_in_one_place(driver):
    queue_at(driver, used=RINGS + 0x400)


@plants("queue-frozen", queue=0, register="QueueDescLow")
def moved_when_ready(driver):
    driver.negotiate()
    driver.set_up_queues()
    driver.put("QueueSel", 0)
    driver.put("QueueDescLow", RINGS)


@plants("queue-frozen", transport="pci", queue=0, register="queue_size")
def smaller_when_ready(driver):
    driver.bring_up()
    driver.put("QueueSel", 0)
    driver.put("QueueSize", 8)


@plants("queue-disable", transport="pci", queue=0)
def disabled(driver):
    driver.bring_up()
    driver.put("QueueSel", 0)
    driver.registers.put_common("queue_enable", 0)


@plants("queue-disable-unread", queue=0, register="QueueReady")
def disabled_for_good(driver):
    driver.bring_up()
    driver.put("QueueSel", 0)
    driver.put("QueueReady", 0)
    driver.put("Status", 0)


@plants("used-ring-dirty", queue=0)
def ring_of_before(driver):
    driver.memory.write_u16(RINGS + 0x802, 7)
    queue_at(driver)


@plants("readable-after-writable", queue=0)
def wrong_order(driver):
    driver.bring_up()
    driver.descriptors((HEAP, 4, WRITE | NEXT, 1), (HEAP, 4, 0, 0))


@plants("chain-loop", queue=0)
def loop(driver):
    driver.bring_up()
    driver.descriptors((HEAP, 4, NEXT, 1), (HEAP, 4, NEXT, 0))


@plants("chain-too-long", queue=0)
def more_than_there_is(driver):
    driver.bring_up()
    driver.descriptors((HEAP, RAM - HEAP, NEXT, 1), (HEAP, 0xFFFFFFFF, 0, 0))


@plants("buffer-outside-ram", queue=0)
def buffer_nowhere(driver):
    driver.bring_up()
    driver.descriptors((RAM, 4, 0, 0))


@plants("next-out-of-range", queue=0)
def goes_on_outside(driver):
    driver.bring_up()
    driver.descriptors((HEAP, 4, NEXT, 16))


@plants("descriptor-flags", queue=0)
def flag_8(driver):
    driver.bring_up()
    driver.descriptors((HEAP, 4, 8, 0))


@plants("descriptor-empty", queue=0)
def nothing_in_it(driver):
    driver.bring_up()
    driver.descriptors((HEAP, 4, NEXT, 1), (HEAP, 0, WRITE, 0))


@plants("descriptor-in-flight", queue=1)
def same_head_twice(driver):
    driver.bring_up()
    driver.descriptors((HEAP, 4, 0, 0), queue=1)
    driver.descriptors((HEAP, 4, 0, 0), queue=1)


@plants("descriptor-in-flight", queue=1)
def shared_tail(driver):
    driver.bring_up()
    driver.descriptors((HEAP, 4, NEXT, 1), (HEAP, 4, 0, 0), queue=1)
    driver.descriptors((HEAP, 4, NEXT, 1), queue=1, head=2)
    assert next(iter(driver.findings)).descriptor == 1


@plants("descriptor-changed", queue=1)
def length_changed(driver):
    driver.bring_up()
    driver.descriptors((HEAP, 4, 0, 0), queue=1)
    driver.rings[1].descriptor(0, HEAP, 8)
    driver.device.answer()


@plants("descriptor-changed", queue=1)
def indirect_table_changed(driver):
    driver.bring_up()
    driver.send(1, [b"text"], [4], indirect=True)
    driver.memory.write(0x20000, pack("<QIHH", HEAP, 1, NEXT, 1))
    driver.device.answer()


@plants("indirect-not-negotiated", queue=0)
def indirect_all_the_same(driver):
    driver.bring_up(without=[spec.F_RING_INDIRECT_DESC])
    driver.send(0, [b"text"], indirect=True)


def indirect(driver, *table, flags=INDIRECT, length=None, gpa=0x20000):
    driver.bring_up()
    driver.memory.write(0x20000, b"".join(pack("<QIHH", *entry) for entry in table))
    driver.descriptors((gpa, 16 * len(table) if length is None else length, flags, 1), (HEAP, 4, 0, 0))


@plants("indirect-nested", queue=0)
def table_in_a_table(driver):
    indirect(driver, (0x20000, 16, INDIRECT, 0))


@plants("indirect-next", queue=0)
def table_and_more(driver):
    indirect(driver, (HEAP, 4, 0, 0), flags=INDIRECT | NEXT)


@plants("indirect-length", queue=0)
def one_and_a_half(driver):
    indirect(driver, (HEAP, 4, 0, 0), length=24)


@plants("indirect-too-long", queue=0)
def more_than_the_queue(driver):
    indirect(driver, *[(HEAP, 4, 0, 0)] * 17)


@plants("indirect-outside-ram", queue=0)
def table_of_nothing(driver):
    indirect(driver, (HEAP, 4, 0, 0), gpa=RAM)


@plants("index-jump", queue=0)
def index_jumps(driver):
    driver.bring_up()
    driver.memory.write_u16(driver.rings[0].driver + 2, 17)
    driver.kick()


@plants("index-decremented", queue=0, also=("index-jump",))
def index_goes_back(driver):
    driver.bring_up()
    driver.request(0, [b"text"], [4])
    driver.memory.write_u16(driver.rings[0].driver + 2, 0)
    driver.kick()


@plants("head-out-of-range", queue=0)
def head_16(driver):
    driver.bring_up()
    driver.rings[0].make_available(16)
    driver.kick()


@plants("entry-late", queue=0)
def entry_after_the_index(driver):
    driver.bring_up()
    ring = driver.rings[0]
    for index in range(6):
        ring.descriptor(index, HEAP, 4)
    ring.make_available(0)
    driver.kick()
    driver.memory.write_u16(ring.driver + 2, 2)
    driver.kick()  # the device takes what is in the entry: 0, of which the driver knows nothing
    driver.memory.write_u16(ring.driver + 4 + 2, 5)
    ring.avail = 2
    ring.make_available(3)
    driver.kick()


@plants("entry-late", queue=1)
def entry_changed_in_flight(driver):
    driver.bring_up()
    driver.descriptors((HEAP, 4, 0, 0), queue=1)
    driver.descriptors((HEAP, 4, 0, 0), queue=1, head=1)
    driver.memory.write_u16(driver.rings[1].driver + 4, 5)
    driver.device.answer()


@plants("available-flags", queue=0)
def no_interrupt_by_both_ways(driver):
    driver.bring_up()
    driver.rings[0].set_flags(1)
    driver.request(0, [b"text"], [4])


@plants("used-ring-written", queue=0)
def used_index_taken_back(driver):
    driver.bring_up()
    driver.request(0, [b"text"], [4])
    driver.memory.write_u16(driver.rings[0].device + 2, 0)
    driver.send(0, [b"text"], [4])


@plants("notify-early", queue=0, register="")
def before_driver_ok(driver):
    driver.negotiate()
    driver.set_up_queues()
    driver.kick()


@plants("notify-not-ready", queue=1, register="")
def other_queue(driver):
    queue_at(driver)
    driver.put("Status", 15)
    driver.kick(1)


@plants("notify-unknown", register="QueueNotify")
def queue_7(driver):
    driver.bring_up()
    driver.kick(7)


@plants("notify-unknown", transport="pci", register="notification")
def address_7(driver):
    driver.bring_up()
    driver.kick(7)


@plants("notify-width", register="QueueNotify")
def half_a_word(driver):
    driver.bring_up()
    driver.registers.put("QueueNotify", 0, 2)


@plants("notify-width", transport="pci", queue=0)
def whole_word(driver):
    driver.bring_up()
    driver.registers.bus.write(driver.registers.at(spec.PCI_CAP_NOTIFY_CFG), 4, 0)


@plants("notify-value", transport="pci", queue=0)
def other_number(driver):
    driver.bring_up()
    driver.registers.bus.write(driver.registers.at(spec.PCI_CAP_NOTIFY_CFG), 2, 1)


@plants("notify-suppressed", queue=0)
def does_not_look_at_the_event(driver):
    driver.bring_up()
    driver.send(0, [b"text"], [4])
    driver.device.paused = True
    for _ in range(10):
        driver.send(0, [b"text"])


@plants("notify-suppressed", "rng", queue=0)
def does_not_look_at_the_flag(driver):
    driver.device._source = lambda count: b""
    driver.bring_up(without=[spec.F_RING_EVENT_IDX])
    for _ in range(10):
        driver.send(0, [], [4])


@plants("notify-missing", queue=0)
def silent(driver):
    driver.bring_up()
    driver.request(0, [b"text"], [4])
    driver.rings[0].add(driver.heap, [b"text"], [4])
    driver.lint.settle()


@plants("ack-not-pending", register="InterruptACK")
def twice(driver):
    driver.bring_up()
    driver.send(0, [b"text"], [4])
    driver.put("InterruptACK", driver.get("InterruptStatus"))
    driver.put("InterruptACK", 1)


@plants("ack-undefined", register="InterruptACK")
def all_ones(driver):
    driver.bring_up()
    driver.put("InterruptACK", 0xFC)


@plants("ack-unread", register="InterruptACK")
def without_a_look(driver):
    driver.bring_up()
    driver.send(0, [b"text"], [4])
    driver.put("InterruptACK", 1)


@plants("ack-unread", register="InterruptACK")
def second_one_without_a_look(driver):
    driver.bring_up(without=[spec.F_RING_EVENT_IDX])
    driver.request(0, [b"text"], [4])
    driver.acknowledge()
    driver.send(0, [b"text"], [4])
    driver.put("InterruptACK", 1)


@plants("isr-with-msix", transport="pci", register="ISR status")
def isr_too(driver):
    driver.bring_up()
    driver.registers.isr()


@plants("vector-out-of-range", transport="pci", register="config_msix_vector")
def vector_100(driver):
    driver.bring_up()
    driver.registers.put_vector("config_msix_vector", 100)


@plants("vector-unread", transport="pci", register="config_msix_vector")
def vector_not_read(driver):
    driver.bring_up()
    driver.registers.put_common("config_msix_vector", 0)
    driver.put("Status", 0)


@plants("vector-unread", transport="pci", queue=1, register="queue_msix_vector", also=("driver-ok-without-queues",))
def vector_of_a_queue_not_read(driver):
    driver.negotiate()
    for index in (0, 1):
        driver.put("QueueSel", index)
        driver.registers.put_common("queue_msix_vector", index)
    driver.put("QueueSel", 0)
    driver.registers.common("queue_msix_vector")
    driver.put("Status", 15)


@plants("queue-unknown", transport="pci", register="queue_msix_vector")
def vector_of_the_third_queue(driver):
    driver.negotiate()
    driver.put("QueueSel", 2)
    driver.registers.put_vector("queue_msix_vector", 1)


@plants("no-bus-master", transport="pci", register="device_status")
def no_bus_master(driver):
    driver.registers.write(pci.COMMAND, 2, pci.COMMAND_MEMORY)
    driver.bring_up()


def request(driver, kind, sector=0, readable=(), writable=()):
    driver.bring_up()
    driver.send(0, [pack("<IIQ", kind, 0, sector), *readable], [*writable, 1])


@plants("blk-header", "blk", queue=0)
def short_header(driver):
    driver.bring_up()
    driver.send(0, [bytes(15)], [1])


@plants("blk-direction", "blk", queue=0)
def write_into(driver):
    request(driver, spec.BLK_T_OUT, writable=[512])


@plants("blk-length", "blk", queue=0)
def half_a_sector(driver):
    request(driver, spec.BLK_T_IN, writable=[256])


@plants("blk-capacity", "blk", queue=0)
def behind_the_end(driver):
    request(driver, spec.BLK_T_IN, 1 << 40, writable=[512])


@plants("blk-capacity", "read-only", queue=0)
def behind_the_end_of_what_can_be_read(driver):
    request(driver, spec.BLK_T_IN, 1 << 40, writable=[512])


@plants("blk-read-only", "read-only", queue=0)
def writes_all_the_same(driver):
    request(driver, spec.BLK_T_OUT, readable=[bytes(512)])


@plants("blk-type", "blk", queue=0)
def type_77(driver):
    request(driver, 77)


@plants("blk-id-length", "blk", queue=0)
def long_name(driver):
    request(driver, spec.BLK_T_GET_ID, writable=[21])


@plants("blk-segments", "blk", queue=0)
def half_a_segment(driver):
    request(driver, spec.BLK_T_DISCARD, readable=[bytes(8)])


@plants("blk-flags", "blk", queue=0)
def unmap_of_a_discard(driver):
    request(driver, spec.BLK_T_DISCARD, readable=[pack("<QII", 0, 1, 1)])


@plants("blk-flush-sector", "blk", queue=0)
def flush_of_a_sector(driver):
    request(driver, spec.BLK_T_FLUSH, 5)


@plants("blk-flush-data", "blk", queue=0)
def flush_of_data(driver):
    request(driver, spec.BLK_T_FLUSH, readable=[bytes(512)])


@plants("blk-sector", "blk", queue=0)
def name_of_a_sector(driver):
    request(driver, spec.BLK_T_GET_ID, 5, writable=[20])


@plants("blk-writeback-early", "blk", register="writeback")
def looks_too_early(driver):
    driver.reset()
    driver.put("Status", 3)
    driver.config(32, 1)


@plants("net-direction", "net", queue=0)
def gives_instead_of_taking(driver):
    driver.bring_up(NET)
    driver.send(0, [bytes(2048)], [2048])
    driver.device.serve(driver.device.queues[0])


@plants("net-receive-header", "net", queue=0)
def no_room_for_the_header(driver):
    driver.bring_up(NET)
    driver.send(0, [], [8])


@plants("net-receive-small", "net", queue=0)
def small_and_not_mergeable(driver):
    driver.bring_up(NET & ~(1 << spec.NET_F_MRG_RXBUF))
    driver.send(0, [], [1500])


@plants("net-receive-small", "net", queue=0)
def small_for_segments_put_together(driver):
    driver.bring_up(NET & ~(1 << spec.NET_F_MRG_RXBUF) | 1 << spec.NET_F_GUEST_CSUM | 1 << spec.NET_F_GUEST_TSO4)
    driver.send(0, [], [65561])


@plants("net-short", "net", queue=1)
def half_a_header(driver):
    driver.bring_up(NET)
    driver.send(1, [bytes(6)])


def packet(driver, *, flags=0, gso=0, size=0, buffers=0, length=60, features=NET):
    driver.bring_up(features)
    driver.send(1, [pack("<BBHHHHH", flags, gso, 0, size, 0, 0, buffers), bytes(length)])


@plants("net-header", "net", queue=1)
def segments_that_were_not_negotiated(driver):
    packet(driver, flags=spec.NET_HDR_F_NEEDS_CSUM, gso=spec.NET_HDR_GSO_TCPV4, size=1000)


@plants("net-flags", "net", queue=1)
def calls_it_valid(driver):
    packet(driver, flags=spec.NET_HDR_F_DATA_VALID)


@plants("net-flags", "net", queue=1)
def flags_without_checksums(driver):
    packet(driver, flags=0x40)


@plants("net-num-buffers", "net", queue=1)
def num_buffers(driver):
    packet(driver, buffers=1)


@plants("net-mtu", "net", queue=1)
def jumbo(driver):
    packet(driver, length=9000, features=NET | 1 << spec.NET_F_MTU)


@plants("console-direction", "console", queue=1)
def writable_output(driver):
    driver.bring_up()
    driver.send(1, [b"text"], [4])


@plants("console-control", "console", queue=3)
def short_message(driver):
    driver.bring_up()
    driver.send(3, [bytes(4)])


@plants("console-event", "console", queue=3)
def adds_a_port(driver):
    driver.bring_up()
    driver.send(3, [pack("<IHH", 1, spec.CONSOLE_DEVICE_ADD, 1)])


@plants("rng-readable", "rng", queue=0)
def gives_randomness(driver):
    driver.bring_up()
    driver.send(0, [b"text"], [4])


@plants("balloon-direction", "balloon", queue=0)
def pages_to_be_written(driver):
    driver.bring_up()
    driver.send(0, [], [4])


@plants("balloon-numbers", "balloon", queue=0)
def page_and_a_half(driver):
    driver.bring_up()
    driver.send(0, [bytes(6)])


@plants("balloon-statistics", "balloon", queue=2)
def two_at_a_time(driver):
    driver.bring_up()
    driver.send(2, [bytes(10)])
    driver.send(2, [bytes(10)])


@plants("vsock-direction", "vsock", queue=1, also=("vsock-cid",))
def writable_packet(driver):
    driver.bring_up()
    driver.send(1, [bytes(44)], [4])


@plants("vsock-header", "vsock", queue=1)
def short_packet(driver):
    driver.bring_up()
    driver.send(1, [bytes(40)])


@plants("vsock-cid", "vsock", queue=1)
def borrowed_address(driver):
    driver.bring_up()
    driver.send(1, [pack("<QQIIIHHIII", 4, 2, 1000, 52, 0, 1, spec.VSOCK_OP_REQUEST, 0, 4096, 0)])


@plants("vsock-length", "vsock", queue=1)
def more_data_than_there_are(driver):
    driver.bring_up()
    driver.send(1, [pack("<QQIIIHHIII", 3, 2, 1000, 52, 5, 1, spec.VSOCK_OP_RW, 0, 4096, 0), b"four"])


@pytest.mark.parametrize("planted", PLANTED, ids="-".join)
def test_what_a_driver_breaks_is_found(planted):
    rule, transport, _ = planted
    plant, device, queue, register, rules = PLANTED[planted]
    driver = Judged(device, transport)
    plant(driver)
    found = {finding.name: finding for finding in driver.findings}
    assert found.keys() == rules, list(map(str, driver.findings))
    assert found[rule].queue == queue
    if register is not None:
        assert found[rule].register == register
    assert RULES[rule].section in str(found[rule])
    driver.close()


def test_every_rule_has_a_driver_that_breaks_it():
    assert {rule for rule, _, _ in PLANTED} == RULES.keys()


# --- Drivers that do it in another way, and may ----------------------------------------------------------------------

LAWFUL: list[tuple[Callable[..., None], str, str]] = []


def lawful(device="other", transport="mmio"):
    """Declares a function that has a driver of `device` do what is unusual, and is none of the rules' business."""

    def declare(function):
        LAWFUL.append((function, device, transport))
        return function

    return declare


@lawful(transport="pci")
def vectors_read_back_when_all_are_chosen(driver):
    driver.negotiate()
    driver.registers.put_common("config_msix_vector", 0)
    for index in (0, 1):
        driver.put("QueueSel", index)
        driver.registers.put_common("queue_msix_vector", index + 1)
    driver.registers.common("config_msix_vector")
    for index in (0, 1):
        driver.put("QueueSel", index)
        driver.registers.common("queue_msix_vector")
    driver.set_up_queues()
    driver.put("Status", 15)


@lawful()
def queues_read_back_when_all_are_disabled(driver):
    driver.bring_up()
    for use in (driver.put, lambda register, _: driver.get(register)):
        for index in (0, 1):
            driver.put("QueueSel", index)
            use("QueueReady", 0)
    driver.put("Status", 0)


@lawful()
def enabled_twice(driver):
    driver.negotiate()
    driver.set_up_queues()
    driver.put("QueueReady", 1)
    driver.put("Status", 15)


@lawful()
def the_same_features_once_more(driver):
    driver.bring_up()
    driver.accept(driver.device.features)


@lawful("none")
def no_queue_where_there_is_none(driver):
    driver.negotiate()
    driver.put("Status", 15)


@lawful("net")
def buffers_from_before_driver_ok_and_no_larger_than_they_must_be(driver):
    driver.negotiate(NET & ~(1 << spec.NET_F_MRG_RXBUF))
    driver.set_up_queues()
    driver.rings[0].add(driver.heap, [], [1526])
    driver.put("Status", 15)
    driver.lint.settle()
    driver.device.serve(driver.device.queues[0])


@lawful()
def available_before_driver_ok(driver):
    driver.negotiate()
    driver.set_up_queues()
    driver.rings[0].add(driver.heap, [b"text"], [4])
    driver.device.paused = True  # it has not come to it yet
    driver.put("Status", 15)
    driver.lint.settle()


@lawful("balloon", "pci")
def number_2_is_not_for_statistics_unless_negotiated(driver):
    driver.bring_up(without=[spec.BALLOON_F_STATS_VQ])
    for _ in range(3):
        driver.send(2, [], [4096])


@pytest.mark.parametrize(("unusual", "device", "transport"), LAWFUL, ids=[row[0].__name__ for row in LAWFUL])
def test_what_is_unusual_and_allowed_is_no_finding(unusual, device, transport):
    driver = Judged(device, transport)
    unusual(driver)
    assert [str(finding) for finding in driver.findings] == []
    driver.close()


# --- What is kept -----------------------------------------------------------------------------------------------------


def test_a_finding_is_told_once_and_counted():
    said = []
    findings = Findings(said.append)
    findings.locate = lambda: (1, 0x1234)
    for _ in range(3):
        findings.add("blk-header", "blk0", queue=2, descriptor=5, detail="so")
    [finding] = findings
    assert (finding.count, finding.vcpu, finding.rip) == (3, 1, 0x1234)
    assert said == [
        "lint: blk0, queue 2, descriptor 5: the driver made a request without room for its header or its status: so, "
        "at RIP 0x1234 (virtio 1.3, 5.2.6) [blk-header, must]"
    ]
    kept = {"rule": "blk-header", "level": "must", "section": "5.2.6", "count": 3, "rip": 0x1234, "register": ""}
    assert finding.as_dict().items() >= kept.items()
    findings.add("no-bus-master", "net0", register="device_status")
    assert said[1].startswith("lint: net0, device_status: the driver ") and "virtio" not in said[1]
    assert ": ," not in said[1] and said[1].endswith(f" ({RULES['no-bus-master'].section}) [no-bus-master, hint]")


def test_findings_are_bounded():
    findings = Findings()
    for number in range(LIMIT + 10):
        findings.add("blk-header", f"blk{number}")
    assert len(findings) == LIMIT and findings.lost == 10


def test_what_is_remembered_of_a_queue_is_bounded():
    driver = Judged()
    driver.bring_up()
    lint = driver.lint.queues[1]
    for _ in range(1000):
        driver.send(1, [b"a", b"b"], [4], indirect=True)
        if len(driver.device.held) == 8:
            for _ in range(8):
                driver.device.answer()
            driver.rings[1].used()
    assert len(lint._taken) <= 16 and len(lint._owners) <= 16
    driver.close()


def test_a_device_that_is_restored_was_set_up_well():
    before = GoodDriver(DEVICES["blk"]())
    before.bring_up()
    request = pack("<IIQ", spec.BLK_T_IN, 0, 0)
    for _ in range(5):
        before.request(0, [request], [512, 1])
    state = save_device(before.device, before.transport)
    driver = Judged("blk")
    driver.memory.write(0, before.memory.read(0, RAM))
    restore_device(driver.device, driver.transport, state)
    driver.rings, driver.heap.at = before.rings, before.heap.at
    for ring in driver.rings:
        ring.memory = driver.memory
    driver.put("InterruptACK", 1)  # it has looked at InterruptStatus before
    driver.config(0, 4), driver.config(4, 4)  # as at the generation
    driver.get("ConfigGeneration")
    for _ in range(20):
        driver.acknowledge()
        driver.request(0, [request], [512, 1])
    driver.lint.settle()
    driver.put("Status", 0)
    assert driver.status == 0
    driver.put("Status", 1)
    assert [str(finding) for finding in driver.findings] == []
    driver.kick(7)
    assert driver.found == {"notify-unknown"}
    for one in (driver, before):
        one.close()


def test_the_page_has_every_rule():
    page = (Path(__file__).parents[2] / "docs/lint.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    rows = rows[rows.index(next(row for row in rows if row.startswith("| `identity-unread`"))) :]
    assert rows == [f"| `{rule.name}` | {rule.level} | {rule.section} | {rule.text} |" for rule in RULES.values()]


# --- Drivers that do anything -----------------------------------------------------------------------------------------


def disturb(driver, draw, ops=150):
    """Random accesses of registers, and random words in the rings, of a driver that may have been a good one before."""
    mmio = driver.mmio
    bases = [(BASE, 0x1000)] if mmio else [(driver.registers.bases[0], 0x4000)]
    for _ in range(ops):
        base, length = draw.choice(bases)
        size = draw.choice((1, 2, 4, 4, 4, 8))
        offset = draw.choice((draw.randrange(0, 0x110, 4), draw.randrange(length), 0x3000 + 4 * draw.randrange(4)))
        offset = min(offset, length - size)
        what = draw.random()
        if what < 0.35:
            driver.registers.bus.write(
                base + offset, size, draw.choice((0, 1, 3, 15, draw.getrandbits(8 * size))) % (1 << 8 * size)
            )
        elif what < 0.5:
            driver.registers.bus.read(base + offset, size)
        elif what < 0.8:
            driver.memory.write_u16(RINGS + 2 * draw.randrange(0x800), draw.choice((0, 1, 2, 4, draw.getrandbits(16))))
        else:
            driver.kick(draw.randrange(3))


@pytest.mark.parametrize("transport", ["mmio", "pci"])
@pytest.mark.parametrize("name", sorted(DEVICES.keys() - {"none"}))
def test_no_driver_makes_it_raise_or_grow(name, transport):
    draw = random.Random(f"{name} {transport}")
    reached = set()
    for number in range(8):
        driver = Judged(name, transport)
        if number % 3:
            driver.bring_up(size=4)
        for _ in range(3):
            disturb(driver, draw)
            driver.put("Status", 0)
            driver.bring_up(size=4)
        driver.lint.settle()
        assert not driver.device.error.startswith("internal")
        assert len(driver.findings) < 200
        for lint in driver.lint.queues:
            assert len(lint._taken) <= lint._queue.max_size and len(lint._owners) <= lint._queue.max_size
        reached |= driver.found
        driver.close()
    assert len(reached) > 10, reached
