"""Looking into guests that run: `pyvmm inspect NAME WHAT`."""

from __future__ import annotations

import json
import subprocess

import pytest

from pyvmm.control.client import Client, running
from pyvmm.debug import views
from pyvmm.images import guest
from pyvmm.vm import VM
from tests.support import guests
from tests.support.cli import LIMIT, PYVMM, environment, pyvmm, wait_for

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
        "no virtio devices",
    ):
        assert part in text, part
    assert "paging: " not in text and "IA32_PAT" in text
    found = json.loads(pyvmm("inspect", "web", "--json", "registers", "--cpu", "1").stdout)
    assert found["mp_state"] in ("waiting for INIT", "waiting for SIPI")
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
