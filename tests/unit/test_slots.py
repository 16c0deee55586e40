"""Where devices are, how kernels are told of them, and what options and classes that name devices refuse."""

import pytest

from pyvmm import layout
from pyvmm.boot import Surroundings, commandline
from pyvmm.boot.acpi.dsdt import dsdt
from pyvmm.boot.mptable import configuration_table
from pyvmm.cli.devices import (
    networks,
    parse_balloon,
    parse_disk,
    parse_net,
    parse_port,
    parse_publish,
    parse_rng,
    parse_share,
    parse_vsock,
)
from pyvmm.config import VmConfig
from pyvmm.errors import UsageError
from pyvmm.hardware import Balloon, Disk, Net, Port, Rng, Share, Vsock
from pyvmm.slots import choose_transport, slots
from tests.support.bzimagebuild import bzimage, vmlinux


def config(**settings):
    return VmConfig("kernel", **settings)


def test_every_device_has_a_page_and_an_interrupt_of_its_own():
    found = slots(config(disks=["a", "b"], net=Net.user(), ports=[Port("p", "pty")], rng=Rng()))
    assert [slot.name for slot in found] == ["blk0", "blk1", "net0", "console0", "rng0"]
    assert len({slot.gpa for slot in found}) == len({slot.gsi for slot in found}) == 5
    assert found[0].word == "virtio_mmio.device=4K@0xd0000000:5"
    for slot in found:
        assert layout.HOLE_START <= slot.gpa < layout.IOAPIC - layout.VIRTIO_MMIO_SIZE


def test_no_interrupt_is_anybody_elses():
    taken = {0, 1, 2, layout.SERIAL_IRQ, layout.RTC_IRQ, layout.SCI_IRQ}
    gsis = layout.VIRTIO_GSIS + layout.VIRTIO_HIGH_GSIS
    assert not taken & set(gsis) and len(gsis) == len(set(gsis)) == 18
    assert max(layout.VIRTIO_GSIS) < 16 <= min(layout.VIRTIO_HIGH_GSIS)


def test_there_are_as_many_devices_as_interrupts_that_the_kernel_can_be_told_of():
    assert len(slots(config(disks=["d"] * 18))) == 18
    with pytest.raises(UsageError, match="19 virtio devices: there are interrupts for 18"):
        slots(config(disks=["d"] * 19))
    with pytest.raises(UsageError, match="interrupts for 10"):
        slots(config(disks=["d"] * 11, append="acpi=off"))


def test_on_pci_every_device_has_a_place_on_the_bus_and_in_the_window():
    found = slots(config(disks=["d"] * 31), "pci")
    assert [slot.device for slot in found] == list(range(1, 32))
    assert len({slot.gpa for slot in found}) == 31
    assert all(layout.PCI_WINDOW <= slot.gpa <= layout.PCI_WINDOW_END - layout.PCI_BARS for slot in found)
    assert {slot.gsi for slot in found} == set(layout.PCI_GSIS)
    with pytest.raises(UsageError, match="32 virtio devices: a PCI bus has room for 31"):
        slots(config(disks=["d"] * 32), "pci")


def test_all_kinds_of_devices_have_slots():
    found = slots(config(shares=[Share("/", "a"), Share("/", "b")], vsock=Vsock("v"), balloon=Balloon()))
    assert [slot.name for slot in found] == ["9p0", "9p1", "vsock0", "balloon0"]


def test_the_transport_is_what_the_kernel_can_use(tmp_path):
    linux = tmp_path / "vmlinux"
    linux.write_bytes(vmlinux())
    bare = {"kernel": linux, "disks": ["d"]}
    assert choose_transport(VmConfig(**bare)) == "pci"
    linux.write_bytes(vmlinux() + b"virtio-mmio\0")
    assert choose_transport(VmConfig(**bare)) == "mmio"
    assert choose_transport(VmConfig(**bare, transport="pci")) == "pci"
    assert choose_transport(VmConfig(linux, disks=["d"] * 20)) == "pci"
    linux.write_bytes(bzimage())
    assert choose_transport(VmConfig(**bare)) == "pci"
    assert choose_transport(VmConfig(linux)) == "mmio"
    linux.write_bytes(b"\xf4")
    assert choose_transport(VmConfig(**bare)) == "mmio"
    assert choose_transport(VmConfig(tmp_path / "missing", disks=["d"])) == "mmio"


@pytest.mark.parametrize(
    ("append", "has"),
    [
        ("", False),
        ("console=hvc0", True),
        ("console=ttyS0 console=hvc0,9600", True),
        ("console=hvc0 console=ttyS0", False),
    ],
)
def test_the_virtio_console_is_there_when_it_is_the_kernels(append, has):
    assert [slot.name for slot in slots(config(append=append))] == ["console0"] * has


def test_a_kernel_is_told_once_by_acpi_or_by_its_command_line():
    words = [slot.word for slot in slots(config(disks=["a"]))]
    told = commandline.for_kernel(config(append=""), Surroundings(devices=words), [])
    assert "virtio_mmio" not in told
    told = commandline.for_kernel(config(append="acpi=off"), Surroundings(devices=words), [])
    assert told.count("virtio_mmio.device=4K@0xd0000000:5") == 1


def test_every_table_says_edge():
    """The MP table leaves ISA interrupts as ISA has them, edges; the DSDT says so."""
    body = dsdt([(0xD0000000, 0x1000, 5)])
    assert bytes([0x89, 6, 0, 0b11, 1]) + (5).to_bytes(4, "little") in body
    table = configuration_table(1)
    for gsi in layout.VIRTIO_GSIS:
        assert bytes([3, 0, 0, 0, 0, gsi, 1, gsi]) in table


# --- Options ---------------------------------------------------------------------------------------------------------


def test_a_disk_is_read_from_its_option():
    disk = parse_disk("a,,b.img,ro,cache=none,queues=4,serial=S1")
    assert (disk.path, disk.readonly, disk.overlay, disk.cache, disk.queues, disk.serial) == (
        "a,b.img",
        True,
        False,
        "none",
        4,
        "S1",
    )
    assert parse_disk("x,overlay").overlay


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "needs a path"),
        ("x,format=qcow2", "unknown disk format 'qcow2'"),
        ("x,cache=fast", "unknown cache mode"),
        ("x,ro=1", "takes no value"),
        ("x,datapath=c", "unknown data path"),
        ("x,cache=", "needs a value"),
        ("x,ro,ro", "given twice"),
        ("x,what", "unknown sub-option 'what'"),
        ("x,ro,overlay", "either read-only or"),
        ("x,overlay,cache=none", "an overlay is a temporary file"),
        ("x,queues=0", "0 queues"),
        ("x,queues=17", "17 queues"),
        ("x,queues=-1", "not a number"),
        ("x,serial=" + "s" * 21, "up to 20 characters"),
        ("format=raw,ro", "expected a path before format="),
    ],
)
def test_a_wrong_disk_is_refused(text, complaint):
    with pytest.raises(UsageError, match=complaint):
        parse_disk(text)


def test_a_network_is_read_from_its_option():
    net = parse_net("user,mac=52:54:00:12:34:56,mtu=1400,hostfwd=tcp::2222-:22,pcap=f.pcap,no-spoof")
    assert net is not None
    assert (net.kind, net.mac, net.mtu, net.forwards, net.pcap, net.spoof) == (
        "user",
        bytes.fromhex("525400123456"),
        1400,
        ("tcp::2222-:22",),
        "f.pcap",
        False,
    )
    assert parse_net("tap=tap7").target == "tap7" and parse_net("tap").target == ""
    assert parse_net("socket=/run/s").target == "/run/s"
    assert parse_net("none") is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("bridge", "unknown network 'bridge'"),
        ("user=x", "has no name"),
        ("socket", "needs the path"),
        ("tap,hostfwd=tcp::1-:2", "forwards go with a user network"),
        ("user,mac=nonsense", "MAC address 'nonsense'"),
        ("user,mac=01:00:00:00:00:00", "of a station"),
        ("user,mac=00:00:00:00:00:00", "of a station"),
        ("user,mac=52:54:00", "expected six bytes"),
        ("user,mtu=67", "MTU of 67"),
        ("user,mtu=70000", "MTU of 70000"),
        ("user,hostfwd=nonsense", "nonsense"),
        ("none,mtu=1500", "unknown network 'none'"),
    ],
)
def test_a_wrong_network_is_refused(text, complaint):
    with pytest.raises(UsageError, match=complaint):
        parse_net(text)


def test_a_published_port_makes_a_user_network_or_joins_one():
    [net] = networks([], [parse_publish("8080:80")])
    assert (net.kind, net.forwards) == ("user", ("8080:80",))
    tap, user = networks([Net.tap("t"), Net.user(["tcp::1-:2"])], ["8080:80"])
    assert tap.forwards == () and user.forwards == ("tcp::1-:2", "8080:80")
    assert networks([None], []) == []
    with pytest.raises(UsageError, match="goes with --net user, not with tap"):
        networks([Net.tap("t")], ["8080:80"])
    with pytest.raises(UsageError, match="none goes with no other"):
        networks([None], ["8080:80"])
    with pytest.raises(UsageError):
        parse_publish("80")


def test_ports_and_random_numbers_are_read_from_their_options():
    port = parse_port("log=file:a=b")
    assert (port.name, port.where) == ("log", "file:a=b")
    for text in ("log", "=x", "log=", "a/b=pty", "a" * 65 + "=pty"):
        with pytest.raises(UsageError):
            parse_port(text)
    assert parse_rng("1000").rate == 1000 and parse_rng("4K").rate == 4096
    for text in ("0", "fast", "-1"):
        with pytest.raises(UsageError):
            parse_rng(text)


def test_shares_vsock_and_balloon_are_read_from_their_options():
    share = parse_share("/a,,b,tag=t,ro")
    assert (share.path, share.tag, share.readonly) == ("/a,b", "t", True)
    assert not parse_share("/a,tag=t").readonly
    for text in ("/a", ",tag=t", "/a,tag=", "/a,tag=t,rw", "tag=t", "/a,tag=" + "t" * 32, "/a,tag=\x7f"):
        with pytest.raises(UsageError):
            parse_share(text)
    vsock = parse_vsock("/run/v,cid=77")
    assert (vsock.path, vsock.cid) == ("/run/v", 77) and parse_vsock("v").cid == 3
    for text in ("", "v,cid=2", "v,cid=4294967295", "v,cid=x", "cid=4"):
        with pytest.raises(UsageError):
            parse_vsock(text)
    assert parse_balloon("16M").size == 16 << 20
    with pytest.raises(UsageError):
        parse_balloon("large")
    with pytest.raises(UsageError, match="a balloon of 2M in 1M of memory"):
        config(mem="1M", balloon=Balloon(2 << 20))
    with pytest.raises(UsageError, match="two shares are called 't'"):
        config(shares=[Share("/", "t"), Share("/tmp", "t")])


def test_a_path_alone_is_a_disk():
    assert [disk.path for disk in config(disks=["a", Disk("b", readonly=True)]).disks] == ["a", "b"]
