"""`pyvmm run --explain` with real vCPUs: what it says of small guests, and that stdout is the guest's."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.images import guest
from tests.support import guests
from tests.support.cli import pyvmm

pytestmark = pytest.mark.needs("kvm", "capstone")


@pytest.fixture
def says(tmp_path: Path) -> Path:
    path = tmp_path / "says.bin"
    path.write_bytes(guests.says(b"aab"))
    return path


def test_each_exit_is_a_line_on_standard_error(says: Path) -> None:
    done = pyvmm("run", says, "--explain", timeout=60)
    assert (done.returncode, done.stdout) == (1, b"aab")
    lines = done.stderr.decode().splitlines()
    assert all(line.startswith("pyvmm: ") for line in lines)
    told = [line.removeprefix("pyvmm: ") for line in lines]
    assert told[0] == "the run: running" and told[-1] == "the run: ended"
    assert told[1].startswith("vCPU 0 at 0x7c0a: `out dx, al` writes serial's THR 0x61 'a'; the character goes out (")
    assert told[2] == "  the same again, x 1" and "THR 0x62 'b'" in told[3]
    assert "`out 0xf4, al` writes debugexit's EXIT 0x00" in told[4]


def test_only_the_devices_that_are_named_are_told_of(says: Path) -> None:
    done = pyvmm("run", says, "--explain=debugexit", timeout=60)
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 3 and "debugexit" in lines[1]


def test_a_device_that_is_not_there_is_an_error_that_names_those_that_are(says: Path) -> None:
    done = pyvmm("run", says, "--rng", "--explain=serial,virtio-blk", timeout=60)
    assert (done.returncode, done.stdout) == (2, b"")
    error = done.stderr.decode().splitlines()[0]
    assert error.startswith("pyvmm: error: nothing to explain is called 'virtio-blk' (there are acpi-pm, ")
    assert "rng0" in error and "virtio-rng" in error


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("transport", ["mmio", "pci"])
def test_a_virtio_driver_is_told_register_by_register(transport: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"hello\n" + bytes(2048 - 6))
    append = "virtio_mmio.device=4K@0xd0000000:5" if transport == "mmio" else "poll"
    options = ("--disk", disk, "--transport", transport, "--append", append, "--explain=virtio-blk")
    done = pyvmm("run", guest("virtio-blk").path(), *options, timeout=60)
    lines = done.stderr.decode().splitlines()
    register = "Status 0x0000000f" if transport == "mmio" else "device_status 0x0f"
    [live] = [line for line in lines if f"writes blk0's {register}: ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK" in line]
    assert "`mov " in live and "(virtio 1.3, 4." in live and "+0x" in live
    assert all("blk0" in line or "the run:" in line or "the same again" in line for line in lines)
    assert not any("cannot be read" in line for line in lines)
    notify = "QueueNotify 0x00000000; the device looks" if transport == "mmio" else "notify[0] 0x0000"
    assert any(f"writes blk0's {notify}" in line for line in lines)
    assert "lint" not in done.stderr.decode()


def test_what_a_driver_does_wrong_is_told_between_the_exits(tmp_path: Path) -> None:
    path = tmp_path / "bad.bin"
    path.write_bytes(guests.DRIVER_OK_FIRST)
    done = pyvmm("run", path, "--flat-mode", "protected", "--rng", "--explain", timeout=60)
    lines = done.stderr.decode().splitlines()
    assert lines[1].endswith("[features-ok-skipped, must]") and "writes rng0's Status 0x00000004" in lines[3]
