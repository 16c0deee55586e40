"""Linux that ends otherwise: reboot, panics, time limits, and what a newcomer gets wrong. Each is named, none hangs."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pyvmm import VM, Outcome
from pyvmm.debug.report import CrashReport
from tests.support.cli import pyvmm
from tests.support.linux import LIMIT, Boot, image

pytestmark = [pytest.mark.needs("kvm", "tiny-image"), pytest.mark.timeout(2 * LIMIT)]


def ends(vm: VM, script: str) -> Outcome:
    """Have a shell in the guest do what ends it; how it ended."""
    vm.popen(["sh", "-c", script])
    return vm.wait(LIMIT)


def test_reboot_ends_with_0(vm_snapshot: VM):
    outcome = ends(vm_snapshot, "echo $((6 * 7)) > /dev/console; reboot -f")
    assert b"42\r\n" in vm_snapshot.console_log
    assert (outcome.reason, outcome.status) == ("reboot", 0)
    assert outcome.detail == "the guest reset the machine through the i8042 keyboard controller"


def test_a_panic_on_request_is_122_and_its_lines_are_in_the_report(vm_snapshot: VM):
    outcome = ends(vm_snapshot, "echo c > /proc/sysrq-trigger")
    assert (outcome.reason, outcome.status) == ("panic", 122)
    report = outcome.report
    assert isinstance(report, CrashReport)
    assert "the guest's kernel panicked" in report.text()
    assert "Kernel panic - not syncing: sysrq triggered crash" in report.text()


def test_no_root_file_system_says_what_to_give():
    done = Boot(image("kernel"), "--kernel-entry", "auto")
    assert done.status == 122 and done.report["reason"] == "panic"
    assert "VFS: Unable to mount root fs" in done.errors
    assert "there is no root file system: give --initrd FILE, a cpio archive with an executable /init" in done.errors


def test_an_initramfs_that_is_no_cpio_is_named(tmp_path: Path):
    wrong = tmp_path / "initrd"
    wrong.write_bytes(b"this is no archive at all\n" * 100)
    done = Boot(image("kernel"), "--initrd", wrong)
    assert done.status == 122 and done.report["reason"] == "panic"
    assert "the initrd is no cpio archive that this kernel can read" in done.errors


def test_a_wrong_console_is_named():
    done = pyvmm(
        "run", "--append", "console=tty0 pyvmm.poweroff", "--timeout", LIMIT, "--stuck", "60s", timeout=LIMIT + 30
    )
    assert done.stdout == b""
    assert b"the kernel's command line has no console=ttyS0" in done.stderr
    assert b"add --append console=ttyS0" in done.stderr


def test_a_kernel_that_loops_before_its_console_is_up_is_stuck(tmp_path: Path):
    kernel = bytearray(Path(image("kernel")).read_bytes())
    kernel[entry_offset(kernel) : entry_offset(kernel) + 2] = b"\xeb\xfe"  # jmp to itself
    looping = tmp_path / "vmlinux"
    looping.write_bytes(kernel)
    done = pyvmm("run", looping, "--stuck", "5s", timeout=60)
    assert done.returncode == 123 and done.stdout == b""
    errors = done.stderr.decode()
    assert "the guest has made no progress for " in errors
    assert "startup_64" in errors and "loop" in errors
    assert "the kernel stopped before its console was up" in errors


def entry_offset(kernel: bytes | bytearray) -> int:
    """Where the first instruction of an ELF64 kernel lies in its file."""
    entry, headers = struct.unpack_from("<QQ", kernel, 24)
    (count,) = struct.unpack_from("<H", kernel, 56)
    for at in range(headers, headers + 56 * count, 56):
        kind, _, offset, _, physical, size = struct.unpack_from("<IIQQQQ", kernel, at)
        if kind == 1 and physical <= entry < physical + size:
            return int(offset + entry - physical)
    raise AssertionError("no segment holds the entry")


@pytest.mark.parametrize(("file", "keep"), [("kernel", 0.5), ("bzimage", 0.5), ("bzimage", 0.01)])
def test_a_kernel_cut_short_is_named(tmp_path: Path, file: str, keep: float):
    whole = Path(image(file)).read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(whole[: int(keep * len(whole))])
    done = pyvmm("run", cut, "--timeout", "20s")
    assert done.returncode == 127 and done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert str(cut) in line and "cut short" in line


def test_a_time_limit_ends_a_linux_and_says_where_it_was():
    done = pyvmm("run", "--timeout", "4s", timeout=60)
    assert done.returncode == 124
    errors = done.stderr.decode()
    assert "the time limit of 4 s was reached" in errors
    assert "+0x" in errors  # a function's name
