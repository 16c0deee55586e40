"""Guests that are stuck, idle, panicked or silent, on KVM: what `pyvmm run` says of them and how it ends."""

from __future__ import annotations

import json
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pyvmm import VM
from pyvmm.cli.ending import state_text
from pyvmm.debug import watch
from pyvmm.kvm.host import Host
from tests.support import guests
from tests.support.cli import pyvmm, wait_for
from tests.support.elfbuild import PT_NOTE, Part, elf, note

pytestmark = pytest.mark.needs("kvm")
LIMIT = 20

VMCALL = bytes.fromhex("0f01c1 ebfb")
"""Any mode: 1: vmcall; jmp 1b."""

IDLE = bytes.fromhex("fb f4 ebfd")
"""Real mode: sti; 1: hlt; jmp 1b, with nothing armed."""

PVPANIC = bytes.fromhex("ba0505 b001 ee ebfe")
"""Real mode: mov $0x505, %dx; mov $1, %al; out %al, (%dx); 1: jmp 1b."""

CLI_HLT = bytes.fromhex("fa f4")
REBOOT = bytes.fromhex("b0fe e664 f4")
POWER_OFF = bytes.fromhex("ba0406 b80020 ef f4")
PANIC_TEXT = b"[    1.000000] Kernel panic - not syncing: nothing to do\n"
OOPS_TEXT = b"[    1.000000] Oops: 0002 [#1] SMP\n[    1.000000] ---[ end trace 0 ]---\n"
MAPPED = b"0000000000007c00 T start_here\n0000000000008000 T after\n"


def on_irq0(code: bytes) -> bytes:
    """Real mode: `code`, in a guest that takes the PIT's interrupt and does nothing then."""
    code = bytes.fromhex("31c0 8ed8 c7060000") + b"??" + bytes.fromhex("c7060200 0000") + code
    return code.replace(b"??", struct.pack("<H", 0x7C00 + len(code))) + bytes.fromhex("50 b020 e620 58 cf")


TICKING = on_irq0(bytes.fromhex("b034 e643 b000 e640 e640 fb f4 ebfd"))
"""An idle guest that the PIT wakes 18 times a second."""
REARMING = on_irq0(bytes.fromhex("b030 e643 b000 e640 b040 e640 fb f4 ebf0"))
"""The same in mode 0: the PIT wakes it once, after 14 ms, and it sets the PIT anew."""


def listening() -> bytes:
    """Real mode: waits in `hlt` for serial input, interrupts by IRQ 4 (vector 4, as the PIC is after reset)."""
    code = (
        bytes.fromhex("31c0 8ed8 c7061000") + b"??" + bytes.fromhex("c7061200 0000")
        + bytes.fromhex("bafc03 b008 ee baf903 b001 ee fb f4 ebfd")
    )  # fmt: skip
    return code.replace(b"??", struct.pack("<H", 0x7C00 + len(code))) + bytes.fromhex("b003 e6f4 f4")


def says(text: bytes, then: bytes) -> bytes:
    """Real mode: write `text` to COM1, then run `then`."""
    head = 3 + 3 + 3 + 1 + 1 + 2
    return (
        b"\xbe" + (0x7C00 + head + len(then)).to_bytes(2, "little")
        + b"\xb9" + len(text).to_bytes(2, "little")
        + bytes.fromhex("baf803 ac ee e2fc") + then + text
    )  # fmt: skip


@pytest.fixture
def guest(tmp_path: Path):
    def write(code: bytes, name: str = "guest.bin") -> Path:
        path = tmp_path / name
        path.write_bytes(code)
        return path

    return write


def run(path, *options: object):
    return pyvmm("run", path, "-m", "1M", "--timeout", f"{LIMIT}s", *options)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (guests.SPIN, b"it jumps to itself"),
        (guests.HALT, b"nothing but an NMI, INIT or reset can wake it"),
        (IDLE, b"nothing is armed that could wake it"),
        (says(b"hello\n", guests.SPIN), b"it jumps to itself"),
    ],
)
def test_a_stuck_guest_is_ended_and_explained(guest, code, words):
    done = run(guest(code), "--stuck", "1s")
    assert done.returncode == 123
    assert words in done.stderr and b"no progress for 1 s" in done.stderr


def test_a_hypercall_that_never_ends(guest):
    done = run(guest(VMCALL), "--stuck", "1s")
    assert done.returncode == 123, "where a hypercall ends, this is a loop around one"
    if Host().quirks.hypercalls_hang:
        assert b"RIP is on a hypercall" in done.stderr


@pytest.mark.parametrize(
    "code", [TICKING, REARMING, listening(), guests.CHATTER], ids=["ticks", "rearms", "listens", "prints"]
)
def test_a_guest_that_idles_or_works_is_left_alone(guest, code):
    done = pyvmm("run", guest(code), "-m", "1M", "--timeout", "3s", "--stuck", "0.4s")
    assert done.returncode == 124
    assert b"progress" not in done.stderr


def test_input_wakes_a_guest_that_was_looked_at(guest):
    with VM(guest(listening()), mem="1M", stuck=0.4, timeout=LIMIT) as vm:
        time.sleep(1.5)
        vm.machine.serial.receive(b"x")
        assert vm.wait(LIMIT).reason == "debug-exit"


def test_a_second_processor_that_was_never_started_does_not_count(guest):
    done = run(guest(guests.SPIN), "--stuck", "1s", "--cpus", "2")
    assert done.returncode == 123 and b"vCPU 0" in done.stderr


def test_it_only_speaks_by_default(guest, monkeypatch):
    monkeypatch.setattr(watch, "PERIOD", 0.1)
    monkeypatch.setattr(watch, "SPEAK_AFTER", 0.5)
    said: list[str] = []
    spoken = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        spoken.set()

    with VM(guest(guests.SPIN), mem="1M", timeout=60, say=say) as vm:
        assert spoken.wait(LIMIT)
        assert vm.exit is None
    assert "it is left running" in said[0] and "0x7c00" in said[0]


def test_without_a_terminal_the_end_comes_by_itself_until_something_is_written(guest):
    """The half minute of the default is too long for a test: what it is made of is looked at."""
    from pyvmm.cli.configuration import make_config
    from pyvmm.cli.options import parse
    from pyvmm.cli.runoptions import RUN

    path = str(guest(guests.SPIN))
    explicit = make_config(parse(RUN, [path, "--stuck", "7s"]))
    assert (explicit.stuck, explicit.stuck_at_boot) == (7.0, None)
    never = make_config(parse(RUN, [path, "--stuck", "never"]))
    assert (never.stuck, never.stuck_at_boot) == (None, None)
    with VM(guest(says(b"hello\n", guests.SPIN)), mem="1M", stuck_at_boot=0.5, timeout=4.0) as vm:
        assert vm.wait(LIMIT).reason == "time-limit"
    with VM(guest(guests.SPIN), mem="1M", stuck_at_boot=0.5, timeout=LIMIT) as vm:
        assert vm.wait(LIMIT).reason == "stuck"


def test_looks_do_not_disturb_who_pauses_and_ends(guest):
    """A guest that prints goes on unharmed while both the watch and a user stop it all the time."""
    with VM(guest(guests.CHATTER), mem="1M", timeout=LIMIT) as vm:
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            found = vm._diagnosis._look()
            assert found is not None and len(found) == 1
            vm.pause()
            before = vm.stats.exits.get("IO")
            vm._diagnosis._look()
            assert vm.stats.exits.get("IO") == before, "the look did not undo the pause"
            vm.resume()
        vm.stop()
        assert vm._diagnosis._look() is None
    assert vm.exit is not None and vm.exit.reason == "stopped"


# --- Panics ---------------------------------------------------------------------------------------------------------


def test_pvpanic_ends_the_run_with_the_kernels_words(guest, tmp_path):
    done = run(guest(says(PANIC_TEXT, PVPANIC)), "--report", tmp_path / "report")
    report = json.loads((tmp_path / "report").read_text())
    assert (done.returncode, report["reason"]) == (122, "panic")
    assert report["detail"] == "Kernel panic - not syncing: nothing to do (it said so at the pvpanic port)"
    assert report["crash"]["likely"] == []
    assert report["complaints"] == [{"kind": "panic", "lines": ["Kernel panic - not syncing: nothing to do"]}]
    assert report["crash"]["console"] == ["Kernel panic - not syncing: nothing to do"]
    assert b"pyvmm:   | Kernel panic - not syncing: nothing to do" in done.stderr


def test_a_panic_may_be_waited_out(guest):
    done = pyvmm("run", guest(PVPANIC), "-m", "1M", "--timeout", "2s", "--on-panic", "wait")
    assert done.returncode == 124 and b"it goes on (--on-panic wait)" in done.stderr


def test_a_panic_may_pause_and_a_look_at_it_does_not_end_that(guest):
    said: list[str] = []
    with VM(guest(PVPANIC), mem="1M", timeout=LIMIT, on_panic="pause", say=said.append) as vm:
        wait_for(lambda: said, "the message")
        assert "stand still" in said[0]
        for _ in range(2):
            assert "at 0x7c0" in state_text(vm)
        assert vm._control.pausing and vm._control.parked == 1
        vm.stop()
        assert vm.wait(LIMIT).reason == "stopped"


@pytest.mark.parametrize("then", [CLI_HLT, guests.SPIN, REBOOT])
def test_a_panics_text_counts_once_the_guest_stops(guest, then):
    done = run(guest(says(PANIC_TEXT, then)), "--stuck", "never")
    assert done.returncode == 122 and b"nothing to do" in done.stderr


def test_a_panics_text_alone_does_not(guest):
    done = run(guest(says(PANIC_TEXT, POWER_OFF)))
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(("option", "status"), [("oops", 122), ("warn", 0), ("warn,oops", 122)])
def test_failing_on_an_oops(guest, tmp_path, option, status):
    done = run(guest(says(OOPS_TEXT, POWER_OFF)), "--fail-on", option, "--report", tmp_path / "report")
    report = json.loads((tmp_path / "report").read_text())
    assert done.returncode == report["status"] == status
    assert report["complaints"][0]["kind"] == "oops"
    assert (b"pyvmm: | Oops: 0002 [#1] SMP" in done.stderr) is bool(status)


# --- Names ----------------------------------------------------------------------------------------------------------


def test_addresses_have_names_with_symbols(guest, tmp_path):
    done = run(guest(guests.SPIN), "--stuck", "1s", "--symbols", guest(MAPPED, "System.map"))
    assert b"0x7c00 (start_here+0x0/0x400)" in done.stderr
    assert b"  rip 00007c00  start_here+0x0/0x400" in done.stderr


def test_symbols_that_are_none_are_an_input_that_cannot_be_loaded(guest):
    done = run(guest(guests.SPIN), "--symbols", guest(b"hello\n", "map"))
    assert done.returncode == 127 and b"has no symbols" in done.stderr


@pytest.mark.needs("gcc")
def test_an_elf_kernel_names_its_own_functions(guest, tmp_path):
    source = tmp_path / "kernel.c"
    source.write_text("void wait_for_ever(void) { for (;;) ; }\nvoid _start(void) { wait_for_ever(); }\n")
    kernel = tmp_path / "kernel"
    flags = ["-m32", "-O0", "-fno-pic", "-no-pie", "-nostdlib", "-static", "-ffreestanding", "-fno-stack-protector"]
    subprocess.run(
        ["gcc", *flags, "-fcf-protection=none", "-Wl,-Ttext=0x100000,--build-id=none", "-o", kernel, source],
        check=True,
        timeout=60,
    )
    done = pyvmm("run", kernel, "-m", "2M", "--stuck", "1s", "--timeout", f"{LIMIT}s")
    assert done.returncode == 123 and b"(wait_for_ever+0x" in done.stderr
    assert b"on the stack: _start+0x" in done.stderr


# --- A Linux kernel that says nothing -------------------------------------------------------------------------------


def test_a_linux_kernel_with_another_console_is_named(guest):
    """No Linux runs here: an ELF file that says it is one, and spins before it has said anything."""
    parts = [Part(0x1000000, guests.SPIN.ljust(16, b"\x90")), Part(0, note(b"Linux\0", 0x100, b""), type=PT_NOTE)]
    path = guest(elf(parts, 0x1000000), "vmlinux")
    done = pyvmm("run", path, "-m", "64M", "--append", "console=tty0", "--stuck", "1s", "--timeout", f"{LIMIT}s")
    assert done.returncode == 123
    assert b"has no console=ttyS0" in done.stderr
    done = pyvmm("run", path, "-m", "64M", "--stuck", "1s", "--timeout", f"{LIMIT}s")
    assert b"before its console was up" in done.stderr
