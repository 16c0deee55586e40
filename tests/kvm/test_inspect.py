"""Looking into guests that run: `pyvmm inspect NAME WHAT`."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

import pytest

from pyvmm import PortDevice
from pyvmm.control.client import Client, running
from pyvmm.debug import views
from pyvmm.images import guest
from pyvmm.vm import VM
from tests.support import guests
from tests.support.cli import LIMIT, PYVMM, environment, pyvmm, wait_for
from tests.support.tinyvm import tiny_vm

pytestmark = pytest.mark.needs("kvm")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PYVMM_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.fixture
def run(tmp_path):
    """Starts a VM called `web` of a guest of a few bytes that does not end by itself."""
    started = []

    def start(guest, *options):
        path = tmp_path / "guest.bin"
        path.write_bytes(guest)
        words = [*PYVMM, "run", str(path), "--name", "web", *options]
        started.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()))
        wait_for(lambda: running() == ["web"], "the VM", LIMIT)
        with Client("web") as client:
            wait_for(lambda: client.ask("inspect")["state"] == "running", "it to run", LIMIT)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_every_view_of_a_guest_that_runs(run):
    run(guests.SPIN, "--cpus", "2")
    shown = pyvmm("inspect", "web", "all")
    assert shown.returncode == 0, shown.stderr
    text = shown.stdout.decode()
    for part in (
        "vcpu 0: real mode",
        "rip 00007c00",
        "RAM, memory slot 0",
        "serial at port 0x3f8",
        "I/O APIC (82093AA): ID 0x0, at 0xfec00000",
        "local APIC of vCPU 0 at 0xfee00000: mode xAPIC",
        "PIT (8254), which counts at 1193182 Hz",
        "no virtio devices",
    ):
        assert part in text, part
    assert "paging: " not in text and "IA32_PAT" in text
    found = json.loads(pyvmm("inspect", "web", "--json", "registers", "--cpu", "1").stdout)
    assert found["mp_state"] in ("waiting for INIT", "waiting for SIPI")
    assert b"  ID 0x01000000: ID=0x1\n" in pyvmm("inspect", "web", "lapic", "1").stdout
    assert pyvmm("inspect", "web", "dump", "rip", "2").stdout.split()[1:3] == [b"eb", b"fe"]
    assert json.loads(pyvmm("inspect", "web", "--json").stdout)["state"] == "running"


def test_a_paused_guest_is_looked_at_and_stays_paused(run):
    run(guests.SPIN)
    assert pyvmm("pause", "web").returncode == 0
    assert b"rip 00007c00" in pyvmm("inspect", "web", "registers").stdout
    assert json.loads(pyvmm("inspect", "web", "--json").stdout)["state"] == "paused"


def test_a_guest_in_a_debuggers_hands_is_looked_at(run):
    run(guests.SPIN, "--gdb=0")
    assert b"rip 00007c00" in pyvmm("inspect", "web", "registers").stdout


def test_bad_words_are_wrong_usage(run):
    run(guests.SPIN)
    bad = pyvmm("inspect", "web", "paging", "nowhere")
    assert bad.returncode == 2 and b"'nowhere' is no address" in bad.stderr
    assert pyvmm("inspect", "nobody", "registers").returncode == 125


@pytest.mark.needs("gcc")
def test_a_guest_with_page_tables_of_its_own_is_walked_and_its_gates_are_shown():
    with VM(guest("paging").path(), timeout=30) as vm:
        vm.wait(25)
        state = vm.registers
        walk = views.page_walk(vm, 0, state.rip)
        assert walk[-1].endswith(f"gpa {state.rip:#x}, RAM") and len(walk) >= 6
        assert " <" in walk[0], "no symbol"
        assert vm.symbol(vm.address_of("on_page_fault") or 0).startswith("on_page_fault+0x0")
        gates = views.descriptor_tables(vm, 0)
        assert any("#PF page fault" in line and "interrupt gate" in line for line in gates)
        # What KVM says of every page that our walk finds, and of those that it does not.
        for gva in (0, 0x1000, state.rip, state.rsp, 0xC0FFE0, 0x200000, 0x7FFF_FFFF_F000):
            ours = vm.vcpus[0].translate(gva)
            found = views.page_walk_data(vm, 0, gva)["gpa"]
            assert found == (None if ours is None else hex(ours)), hex(gva)


# --- KVM's own chips ----------------------------------------------------------------------------------------------


def fields(registers, name):
    """What the register of that name says, of those of a view."""
    return next(register["fields"] for register in registers if register["name"] == name)


@pytest.mark.needs("gcc")
def test_what_a_guest_has_told_pic_and_pit_is_shown():
    with VM(guest("hlt-pit").path(), timeout=30) as vm:
        vm.wait(25)
        chips, pit = views.irqchip_data(vm), views.pit_data(vm)
    assert (chips["pic"]["first_vector"], chips["pic2"]["first_vector"]) == (0x20, 0x28)
    assert fields(chips["pic"]["registers"], "IMR") == [f"IRQ{line}" for line in range(1, 8)]
    assert not chips["pic"]["modes"]
    channel = pit["channels"][0]
    assert (channel["mode_name"], channel["count"], channel["gate"]) == ("rate generator", 11931, True)
    assert [channel["mode"] for channel in pit["channels"][1:]] == [None, None]


@pytest.mark.needs("gcc")
def test_what_a_guest_has_told_its_local_apics_timer_is_shown():
    with VM(guest("lapic-timer").path(), timeout=30) as vm:
        vm.wait(25)
        apic = views.lapic_data(vm)
        shown = views.lapic(vm)
    assert (apic["mode"], apic["enabled"], apic["timer"]["initial"], apic["timer"]["divisor"]) == (
        *("xAPIC", True, 1_000_000, 16),
    )
    assert fields(apic["registers"], "LVT_TIMER") == ["VECTOR=0x40", "MASKED", "MODE=one-shot"]
    assert fields(apic["registers"], "LVT_LINT0")[1] == "DELIVERY=ExtINT"
    assert shown[-1].startswith("  timer: once after 16 ms, ")


class Mailbox(PortDevice):
    """What lesson09-mailbox expects: offset 0 takes a letter, offset 1 says whether there is one."""

    length = 2
    letters = b""

    def tell(self) -> None:
        assert self.irq is not None
        self.irq.set(bool(self.letters))

    def read(self, offset: int, size: int) -> int:
        if offset == 1:
            return bool(self.letters)
        letter, self.letters = self.letters[:1], self.letters[1:]
        self.tell()
        return int.from_bytes(letter, "little")


@pytest.mark.needs("gcc")
def test_an_interrupt_is_seen_on_its_way_from_the_line_to_the_local_apic():
    box = Mailbox()
    vm = VM(guest("lesson09-mailbox").path(), timeout=60)
    vm.attach(box, port=0x500, irq=5)
    with vm:
        vm.console.expect("ready\n", timeout=50)
        vm.pause()
        before = views.irqchip_data(vm)["ioapic"]["pins"][5], views.lapic_data(vm)["irr"]
        with box.lock:
            box.letters = b"abc"
            box.tell()
        pin, requested = views.irqchip_data(vm)["ioapic"]["pins"][5], views.lapic_data(vm)["irr"]
        vm.resume()
        vm.wait(50)
    assert before[0]["fields"] == ["VECTOR=0x35", "DELIVERY=fixed", "MODE=physical", "POLARITY=high", "TRIGGER=level",
                                   "DEST=0x0"]  # fmt: skip
    assert (before[0]["requested"], before[1]) == (False, [])
    assert (pin["requested"], pin["masked"], pin["vector"], requested) == (True, False, 0x35, [0x35])
    assert "REMOTE_IRR" in pin["fields"]


def test_a_vm_that_was_made_without_the_chips_says_so():
    with tiny_vm() as tiny:
        vm = SimpleNamespace(vcpus=[tiny.vcpu], slots=())
        for name, lines in (("irqchip", 3), ("lapic", 1), ("pit", 1)):
            shown = views.look(vm, [name])
            assert len(shown) == lines and all("this VM has none in KVM" in line for line in shown), shown
