"""The composed command line: what is always said, what only some hosts need, and the user's word last."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.boot import LoadedKernel, Surroundings, load
from pyvmm.boot.commandline import compose, names_console
from pyvmm.config import VmConfig
from pyvmm.errors import LoadError
from tests.support.boot import allocate, text
from tests.support.bzimagebuild import CMDLINE_SIZE, SALT, bzimage, vmlinux
from tests.support.elfbuild import multiboot_elf, pvh_elf, pvh_note

HELPS = ("clearcpuid=smap", "mitigations=off")
DEFAULT = "console=ttyS0 reboot=k panic=-1"


def test_defaults() -> None:
    assert compose("") == DEFAULT
    assert compose("  ") == DEFAULT


def test_the_order_is_defaults_helps_devices_user() -> None:
    line = compose("quiet panic=5", HELPS, ["virtio_mmio.device=512@0xd0000000:5"])
    assert line == f"{DEFAULT} clearcpuid=smap mitigations=off virtio_mmio.device=512@0xd0000000:5 quiet panic=5"


@pytest.mark.parametrize(
    ("append", "off"), [("acpi=off", True), ("quiet acpi=off -- x", True), ("acpi=on", False), ("-- acpi=off", False)]
)
def test_a_kernel_without_acpi_is_told_how_to_power_off(append: str, off: bool) -> None:
    """devices.md documents the port, 0x604, and any guest that writes SLP_EN and sleep type 5 there."""
    line = compose(append, HELPS)
    assert ("panic=-1 reboot.poweroff=0x604,0x3400 clearcpuid" in line) is off
    assert ("reboot.poweroff" in line) is off


@pytest.mark.parametrize(
    ("append", "named"),
    [
        ("console=hvc0", True),
        ("quiet console=ttyS0,115200 rw", True),
        ("console=", True),
        ("", False),
        ("netconsole=x", False),
        ("consoleblank=0", False),
        ("no console here", False),
        ("quiet -- console=hvc0", False),
        ("console=tty0 -- x", True),
    ],
)
def test_a_console_that_the_user_names_replaces_the_default(append: str, named: bool) -> None:
    assert names_console(append) is named
    assert compose(append).startswith("reboot=k" if named else "console=ttyS0 ")
    assert compose(append).endswith(append)


def test_words_for_init_stay_last() -> None:
    assert compose("quiet -- single", HELPS).endswith("mitigations=off quiet -- single")


def loaded(folder: Path, kernel: bytes, append: str = "", **settings: object) -> tuple[LoadedKernel, str]:
    """Load on a host that needs help; also what is in memory where the command line was put."""
    (folder / "kernel").write_bytes(kernel)
    config = VmConfig(folder / "kernel", append=append, **settings)  # type: ignore[arg-type]
    memory = allocate()
    kernel_ = load(config, memory, Surroundings(helps=HELPS))
    pieces = [piece.gpa for piece in kernel_.pieces if piece.what == "command line"]
    return kernel_, text(memory, pieces[0]) if pieces else ""


@pytest.mark.parametrize(
    ("kernel", "format"),
    [
        (bzimage(), "auto"),
        (vmlinux(), "auto"),
        (vmlinux(bits=32), "auto"),
        (vmlinux(notes=pvh_note(2 << 20) + SALT), "pvh"),
        (pvh_elf(1 << 20), "linux"),
    ],
)
def test_every_way_into_linux_gets_it(tmp_path: Path, kernel: bytes, format: str) -> None:
    told, line = loaded(tmp_path, kernel, "quiet", kernel_format=format)
    assert line == told.command_line == f"{DEFAULT} clearcpuid=smap mitigations=off quiet"
    assert line in told.describe()
    assert "this host's KVM needs clearcpuid=smap mitigations=off (--no-host-quirks leaves that out)" in told.describe()


def test_without_host_quirks(tmp_path: Path) -> None:
    told, line = loaded(tmp_path, bzimage(), "quiet", host_quirks=False)
    assert line == f"{DEFAULT} quiet"
    assert "this host" not in told.describe()


@pytest.mark.parametrize("kernel", [pvh_elf(1 << 20), multiboot_elf()])
def test_no_other_kernel_does(tmp_path: Path, kernel: bytes) -> None:
    told, line = loaded(tmp_path, kernel)
    assert told.command_line in (None, str(tmp_path / "kernel"))
    assert "panic" not in line
    assert loaded(tmp_path, kernel, "word")[1].split()[-1] == "word"


@pytest.mark.parametrize(
    ("kernel", "limit"),
    [(vmlinux(), 2047), (bzimage(), 2047), (bzimage(changed={CMDLINE_SIZE: 200}), 200), (bzimage(version=0x205), 255)],
)
def test_limit(tmp_path: Path, kernel: bytes, limit: int) -> None:
    room = limit - len(compose("", HELPS)) - 1
    _, line = loaded(tmp_path, kernel, "x" * room)
    assert len(line) == limit
    with pytest.raises(LoadError, match=f"--append: .* takes {limit + 1} bytes .expected at most {limit}"):
        loaded(tmp_path, kernel, "x" * (room + 1))


def test_a_kernel_that_takes_more_than_there_is_room_for(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="at most 65535"):
        loaded(tmp_path, bzimage(changed={CMDLINE_SIZE: 0xFFFFFFFF}), "x" * 65535)


def test_nul(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="--append: the command line has a NUL"):
        loaded(tmp_path, bzimage(), "a\0b")
