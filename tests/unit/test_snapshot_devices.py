"""Devices of a clone that are in another place than those that were saved: network interfaces and sockets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyvmm.backends.vsock import open_vsock
from pyvmm.virtio import spec
from pyvmm.virtio.net import VirtioNet
from pyvmm.virtio.saving import restore_device, save_device
from pyvmm.virtio.vsock import EVENT, TX, VirtioVsock
from pyvmm.virtio.vsockheader import HEADER_LENGTH
from tests.support.virtiodriver import Driver
from tests.support.vsockdriver import Guest as SocketGuest
from tests.support.vsockdriver import Packet, accept, listen
from tests.unit.test_virtio_net import BROADCAST, MAC, OTHER, PLAIN, Memory, frame
from tests.unit.test_virtio_net import Guest as NetGuest

OWN = bytes.fromhex("5254000000aa")


def moved(driver: Driver, other: Driver) -> None:
    """Let `other`, whose device is new, be where `driver` is; its queues have not been served since."""
    state = json.loads(json.dumps(save_device(driver.device, driver.transport)))
    other.memory.write(0, driver.memory.read(0, driver.memory.size))
    other.rings, other.heap = driver.rings, driver.heap
    other.heap.memory = other.memory
    for ring in other.rings:
        ring.memory = other.memory
    restore_device(other.device, other.transport, state)


def serve(driver: Driver) -> None:
    for queue in driver.device.queues:
        if queue.ready:
            driver.device.serve_unless_broken(queue.index)


# --- Network interfaces --------------------------------------------------------------------------------------------


def clone(guest: Any, own: bytes | None, **settings: Any) -> Any:
    """A clone of `guest`, brought up, with a back-end of its own; `own` is an address that it is given."""
    other = NetGuest.__new__(NetGuest)
    other.backend = Memory()
    Driver.__init__(other, VirtioNet(other.backend, mac=OTHER, **settings))
    other.net = other.device
    moved(guest, other)
    if own is not None:
        other.net.readdress(own)
    serve(other)
    return other


def test_a_clone_has_the_same_address_unless_it_is_given_one() -> None:
    guest: Any = NetGuest().bring_up()
    assert clone(guest, None).config(0, 6) == int.from_bytes(MAC, "little")
    other = clone(guest, OWN)
    assert other.config(0, 6) == int.from_bytes(OWN, "little")
    assert other.net.mac == OWN


def test_until_its_driver_begins_anew_a_clone_is_both_stations() -> None:
    guest: Any = NetGuest(spoof=False).bring_up()
    guest.command(spec.NET_CTRL_RX, spec.NET_CTRL_RX_PROMISC, b"\0")
    other = clone(guest, OWN, spoof=False)
    for source in (MAC, OWN, OTHER):
        other.transmit(frame(BROADCAST, source))
    assert [sent[6:12] for sent in other.backend.sent] == [MAC, OWN]
    other.post(1526, 1526, 1526)
    other.arrive(frame(MAC), frame(OWN), frame(OTHER))
    assert [data[:6] for _, data in other.received()] == [MAC, OWN]
    again = clone(other, None, spoof=False)
    again.post(1526)
    again.arrive(frame(MAC))
    assert [data[:6] for _, data in again.received()] == [MAC], "a clone's clone has forgotten it"
    again.bring_up()
    again.command(spec.NET_CTRL_RX, spec.NET_CTRL_RX_PROMISC, b"\0")
    again.backend.sent.clear()
    for source in (MAC, OWN):
        again.transmit(frame(BROADCAST, source))
    assert again.backend.sent == [frame(BROADCAST, OWN)]
    again.post(1526)
    again.arrive(frame(MAC))
    assert again.received() == []


def test_an_address_that_the_driver_has_chosen_stays() -> None:
    guest: Any = NetGuest().bring_up()
    assert guest.command(spec.NET_CTRL_MAC, spec.NET_CTRL_MAC_ADDR_SET, OTHER)
    other = clone(guest, OWN)
    assert other.config(0, 6) == int.from_bytes(OTHER, "little")


def test_frames_wait_in_neither_of_two_places() -> None:
    """What was made available and not sent is sent by the clone; receive buffers that wait are used by it."""
    guest: Any = NetGuest().bring_up()
    guest.post(1526, 1526)
    guest.arrive(frame(fill=b"1"))
    guest.backend.room = 0
    for number in range(3):
        guest.send(1, [PLAIN, frame(OTHER, MAC, fill=b"%d" % number)])
    assert guest.backend.sent == []
    other = clone(guest, None)
    assert other.backend.sent == [frame(OTHER, MAC, fill=b"%d" % number) for number in range(3)]
    other.arrive(frame(fill=b"2"))
    assert [data for _, data in other.received()] == [frame(fill=b"1"), frame(fill=b"2")]


# --- Sockets -------------------------------------------------------------------------------------------------------


def test_connections_end_by_an_event_and_the_address_is_the_clone_s(tmp_path: Path) -> None:
    """virtio 1.3, 5.10.6.7: the driver is told that its connections are gone, and reads its CID again."""
    path = str(tmp_path / "first")
    guest = SocketGuest(VirtioVsock(open_vsock(path), cid=3))
    with listen(f"{path}_52") as server:
        assert guest.connect().name == "RESPONSE"
        with accept(server) as host:
            event = guest.driver.send(EVENT, [], [4])
            other = Driver(VirtioVsock(open_vsock(str(tmp_path / "other")), cid=9), ram=4 << 20)
            moved(guest.driver, other)
            assert other.rings[EVENT].used() == []
            serve(other)
            assert other.rings[EVENT].used() == [(event, 4)]
            assert other.rings[EVENT].written(event) == spec.VSOCK_EVENT_TRANSPORT_RESET.to_bytes(4, "little")
            assert (other.config(0, 4), other.config(4, 4)) == (9, 0)
            host.setblocking(False)
            with pytest.raises(BlockingIOError):
                host.recv(1)  # the VM that was saved has lost nothing
            other.device.close()
    guest.device.close()


def test_the_event_waits_for_a_buffer_and_over_another_snapshot(tmp_path: Path) -> None:
    """virtio 1.3, 5.10.6.7"""
    guest = SocketGuest(VirtioVsock(open_vsock(str(tmp_path / "a"))))
    clones = [Driver(VirtioVsock(open_vsock(str(tmp_path / name))), ram=4 << 20) for name in ("b", "c")]
    moved(guest.driver, clones[0])
    serve(clones[0])
    moved(clones[0], clones[1])
    serve(clones[1])
    event = clones[1].send(EVENT, [], [4])
    assert clones[1].rings[EVENT].used() == [(event, 4)]
    assert clones[1].send(EVENT, [], [4]) not in dict(clones[1].rings[EVENT].used()), "it is told twice"
    for device in (guest.device, clones[0].device, clones[1].device):
        device.close()


def test_a_packet_of_a_connection_that_is_gone_is_answered_by_a_reset(tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    guest = SocketGuest(VirtioVsock(open_vsock(path)))
    with listen(f"{path}_52") as server:
        assert guest.connect().name == "RESPONSE"
        with accept(server):
            other = Driver(VirtioVsock(open_vsock(str(tmp_path / "b"))), ram=4 << 20)
            moved(guest.driver, other)
            serve(other)
    guest.driver = other
    guest.driver.rings[TX].used()
    guest.send("RW", data=b"to nobody")
    ring = other.rings[0]
    packets = [Packet(ring.written(head)[:written]) for head, written in ring.used() if written >= HEADER_LENGTH]
    assert [packet.name for packet in packets] == ["RST"]
    other.device.close()
    guest.device.close()
