"""A guest that keeps disk, network and consoles busy, moved on and on: nothing is lost or repeated."""

from __future__ import annotations

import random
import re
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from pyvmm import VM, Disk, Net, Port, kinds
from pyvmm.backends.capture import CaptureConsole
from pyvmm.events import EventFd
from pyvmm.images import guest
from pyvmm.layout import VIRTIO_GSIS, VIRTIO_MMIO

pytestmark = [pytest.mark.needs("kvm", "gcc"), pytest.mark.timeout(600)]

LIMIT = 60
WORDS = " ".join(f"virtio_mmio.device=4K@{VIRTIO_MMIO + 4096 * n:#x}:{VIRTIO_GSIS[n]}" for n in range(3))
LONG = [pytest.param(200, marks=pytest.mark.soak)]


class Echo:
    """A network that sends everything back, and notes in `numbers` what it was sent."""

    vnet_header = False

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers
        self._frames: deque[bytes] = deque()
        self._event = EventFd()

    def fileno(self) -> int:
        return self._event.fd

    def offloads(self, *_: bool) -> None:
        pass

    def receive(self) -> memoryview | None:
        if not self._frames:
            self._event.drain()
            return None
        return memoryview(self._frames.popleft())

    def send(self, frame: memoryview) -> bool:
        data = bytes(frame)
        self._numbers.append(int.from_bytes(data[14:18], "little"))
        self._frames.append(data)
        self._event.signal()
        return True

    def close(self) -> None:
        self._event.close()


def said(vm: VM) -> str:
    assert isinstance(vm.console, CaptureConsole)
    return vm.console.text


@pytest.mark.parametrize("moves", [20, *LONG])
@pytest.mark.parametrize(("transport", "words"), [("mmio", ""), ("mmio", "flags"), ("pci", ""), ("pci", "flags")])
def test_a_busy_guest_is_moved(
    transport: str, words: str, moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[int] = []

    def frames(net: Net) -> Any:
        return Echo(numbers)

    monkeypatch.setattr(kinds, "_frames", frames)
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    vm = VM(
        guest("virtio-load").path(),
        mem="16M",
        disks=[Disk(image, overlay=True)],
        net=Net.switch("nowhere"),
        ports=[Port("unused")],
        append=f"{words} {WORDS}" if transport == "mmio" else words,
        transport=transport,
        timeout=LIMIT,
    )
    text = ""
    pauses = random.Random(moves)
    for move in range(moves):
        with vm:
            time.sleep(pauses.uniform(0, 0.02))
            path = tmp_path / f"{move % 2}.snap"
            vm.pause()
            vm.snapshot(path)
            assert vm.exit is None, (vm.exit, text, said(vm))
            text += said(vm)
        vm = VM.restore(path, timeout=LIMIT)
    with vm:
        while vm.type(b"q") == 0:
            time.sleep(0.001)
        outcome = vm.wait(LIMIT)
        text += said(vm)
    assert outcome.status == 0, text[-200:]
    found = re.search(r"rounds (\d+) requests (\d+) frames (\d+) echoes (\d+) lines (\d+)\n$", text)
    assert found, text[-200:]
    rounds, requests, sent, echoes, lines = map(int, found.groups())
    assert rounds > 1, "the guest had no time to be busy"
    assert (requests, echoes, lines) == (16 * rounds, rounds, rounds)
    assert numbers == list(range(1, sent + 1)), "a frame was lost on its way out, or sent twice"
    for name in "sv":
        assert re.findall(rf"(?m)^{name} (\d+)$", text) == [str(number) for number in range(1, rounds + 1)]
