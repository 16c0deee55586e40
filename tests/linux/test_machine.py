"""Two CPUs that work, memory above 4 GiB that keeps what is written, the power button. By the Python API."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator

import pytest

from pyvmm import VM
from pyvmm.backends.capture import CaptureConsole
from pyvmm.layout import HOLE_END, HOLE_START
from tests.support.linux import LIMIT, PREPARE, PROMPT, image

pytestmark = [pytest.mark.needs("kvm", "tiny-image"), pytest.mark.timeout(3 * LIMIT)]

HIGH = 256 << 20
"""Bytes of RAM above 4 GiB."""


class Guest:
    """A VM with the image's shell, which answers a line at a time."""

    def __init__(self, vm: VM, limit: float = LIMIT) -> None:
        assert isinstance(vm.console, CaptureConsole)
        self.vm = vm
        self.console = vm.console
        self.console.expect("pyvmm: greeting=.*\n", limit)
        self.console.expect("# ", LIMIT)
        self.console.send(PREPARE + "\n")
        self.console.expect(PROMPT.decode(), LIMIT)

    def command(self, line: str) -> str:
        self.console.send(f"{line}; echo en''d\n")
        found = self.console.expect(r"(?s)en''d\r\n(.*?)end\r\n.*?" + PROMPT.decode(), LIMIT)
        return found[1].replace("\r\n", "\n")

    def numbers(self, line: str) -> list[int]:
        return [int(word) for word in self.command(line).split()]


def start(cpus: int, mem: str, append: str = "quiet") -> VM:
    return VM(image("kernel"), initrd=image("initrd"), mem=mem, cpus=cpus, append=append, timeout=5 * LIMIT)


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """With HIGH bytes above 4 GiB. Linux leaves most of those below alone: pages take it minutes, emulated."""
    with start(2, str(HOLE_START + HIGH >> 20), "quiet memmap=2816M$256M") as vm:
        yield Guest(vm)


def busy(guest: Guest, cpus: int) -> None:
    """Let a shell count on each CPU, and see where each ran and that each CPU had its share.

    They begin when no program starts any more: see docs/emulation.md.
    """
    before = guest.command("grep ^cpu[0-9] /proc/stat")
    count = "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done"
    where = "read -r stat < /proc/self/stat; set -- $stat; echo ${39} >> /tmp/where"  # proc(5): processor
    each = f"(until [ -e /tmp/go ]; do :; done; {count}; {where}) & taskset -pc $c $! > /tmp/old"
    guest.command(f"for c in $(seq 0 {cpus - 1}); do {each}; done; : > /tmp/go; wait; rm /tmp/go")
    after = guest.command("grep ^cpu[0-9] /proc/stat")
    for old, new in zip(before.splitlines(), after.splitlines(), strict=True):
        assert int(new.split()[1]) - int(old.split()[1]) >= 5, f"{old!r} became {new!r}"
    assert sorted(guest.numbers("cat /tmp/where; rm /tmp/where")) == list(range(cpus))


def test_both_cpus_work_under_load(guest):
    assert guest.command("grep -c ^processor /proc/cpuinfo") == "2\n"
    busy(guest, 2)


def test_both_cpus_get_interrupts(guest):
    rows = guest.command("cat /proc/interrupts").splitlines()
    local = next(row.split() for row in rows if row.lstrip().startswith("LOC:"))
    assert int(local[1]) > 0 and int(local[2]) > 0, local
    assert any(row.endswith("ttyS0") for row in rows)
    assert any("acpi" in row and "-fasteoi" in row for row in rows)  # a level
    assert not any(row.startswith(("ERR:", "MIS:")) and row.split()[1] != "0" for row in rows)


def above_4_gib(guest: Guest) -> list[tuple[int, int]]:
    """First and last address of the System RAM that Linux has there."""
    ranges = re.findall(r"(?m)^([0-9a-f]+)-([0-9a-f]+) : System RAM$", guest.command("cat /proc/iomem"))
    return [(int(first, 16), int(last, 16)) for first, last in ranges if int(first, 16) >= HOLE_END]


def total_memory(guest: Guest) -> float:
    """In MiB."""
    return int(guest.command("grep MemTotal /proc/meminfo").split()[1]) / 1024


def keeps_a_file_above_4_gib(guest: Guest) -> bool:
    """Linux takes memory from above 4 GiB first; that the file is there is seen from outside."""
    guest.command("mkdir -p /tmp/t; mount -t tmpfs none /tmp/t; seq 100001 112000 > /tmp/t/f")
    content = "".join(f"{number}\n" for number in range(100001, 112001)).encode()
    assert guest.command("md5sum < /tmp/t/f").split()[0] == hashlib.md5(content).hexdigest()
    pages = {content[at : at + 4096] for at in range(0, len(content) - 4095, 4096)}
    high = next(region for region in guest.vm.memory.regions if region.gpa == HOLE_END)
    guest.vm.pause()
    try:
        found = sum(bytes(high.view[at : at + 4096]) in pages for at in range(0, high.length, 4096))
    finally:
        guest.vm.resume()
    assert found >= len(pages)
    return guest.command("md5sum < /tmp/t/f").split()[0] == hashlib.md5(content).hexdigest()


def test_ram_above_4_gib_is_in_the_map(guest):
    assert above_4_gib(guest) == [(HOLE_END, HOLE_END + HIGH - 1)]
    used = 256 + (HIGH >> 20)
    records = (HOLE_END + HIGH) / 64 / (1 << 20)  # MiB: of each page up to there, whether Linux uses it or not
    assert 0.95 * used - records <= total_memory(guest) <= used


def test_a_file_above_4_gib_keeps_its_checksum(guest):
    assert keeps_a_file_above_4_gib(guest)


def test_the_clock_goes_with_the_hosts(guest):
    (then,) = guest.numbers("date +%s")
    assert abs(then - time.time()) < 30


def test_the_power_button_switches_it_off(vm_snapshot):
    """One program at a time: see docs/emulation.md."""
    vm = vm_snapshot
    assert vm.exec(["test", "-e", "/dev/input/event0"], timeout=LIMIT).returncode == 0
    vm.popen(["acpid", "-f", "-d"])
    time.sleep(5)
    vm.machine.pm.press_power_button()
    outcome = vm.wait(LIMIT)
    assert (outcome.reason, outcome.status) == ("power-off", 0)


@pytest.mark.soak
@pytest.mark.timeout(6 * LIMIT)
def test_4_cpus_and_all_of_4_gib_work():
    with start(4, "4G") as vm:
        guest = Guest(vm, 4 * LIMIT)
        assert guest.command("grep -c ^processor /proc/cpuinfo") == "4\n"
        busy(guest, 4)
        assert above_4_gib(guest) == [(HOLE_END, HOLE_END + (1 << 30) - 1)]
        assert 0.95 * 4096 <= total_memory(guest) <= 4096
        assert keeps_a_file_above_4_gib(guest)
        guest.console.send("poweroff\n")
        assert vm.wait(LIMIT).reason == "power-off"
