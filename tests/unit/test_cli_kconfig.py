"""`pyvmm kconfig`: the fragment, what a configuration or kernel lacks, what a guest that fails is told to lack."""

from __future__ import annotations

import gzip
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyvmm.cli import kconfig
from pyvmm.cli.kconfig import driverless, fragment, lacking, likely_lacking, own_config, pieces, read_config
from pyvmm.cli.rootfs import LACKING
from pyvmm.errors import LoadError, UsageError
from pyvmm.virtio.spec import STATUS_ACKNOWLEDGE, STATUS_DRIVER
from tests.support.cli import pyvmm
from tests.support.linux import image

ROOT = Path(__file__).parents[2]
ALL = dict.fromkeys((option for options in pieces().values() for option in options), "y")


def written(config):
    return "".join(
        f"{name}={value}\n" if value else f"# {name} is not set\n" for name, value in config.items()
    ).encode()


def test_the_tiny_images_kernel_has_all_of_it():
    """The list has one home: what the image is built by is held to it."""
    recipe = (ROOT / "guest-images/tiny/kernel.config").read_text().splitlines()
    wanted = [line for line in fragment().splitlines() if not line.startswith("#") and line]
    assert [line for line in wanted if line not in recipe] == []
    assert all(re.fullmatch(r"CONFIG_[A-Z0-9_]+=y", line) for line in wanted)
    assert len(wanted) == len(set(wanted)) == len(ALL)


def test_each_piece_says_what_it_is_for():
    assert all(title and options for title, options in pieces().items())
    for start in kconfig.FOR_COMMANDS:
        assert any(title.startswith(start) for title in pieces())
    named = " ".join(option for options in pieces().values() for option in options).split()
    assert {*LACKING.values(), "CONFIG_NET_9P_VIRTIO", "CONFIG_BLK_DEV_INITRD"} <= set(named)
    described = (ROOT / "docs/kernels.md").read_text()
    assert "pyvmm kconfig --check" in described


def test_it_is_printed_as_it_stands():
    done = pyvmm("kconfig")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, fragment(), b"")
    assert all(len(line) <= 120 for line in fragment().splitlines())


def test_what_lacks_is_named_by_what_it_is_for(tmp_path):
    (tmp_path / "config").write_bytes(written(ALL | {"CONFIG_9P_FS": "", "CONFIG_VIRTIO_BLK": "m"}))
    done = pyvmm("kconfig", "--check", tmp_path / "config")
    assert (done.returncode, done.stderr) == (1, b"")
    assert done.stdout.decode() == (
        "# the host's files: --root, --rwdir, --modules, --share\nCONFIG_9P_FS is not set\n"
        "# disks: --disk\nCONFIG_VIRTIO_BLK=m  # here it is a module\n"
    )
    (tmp_path / "config").write_bytes(written(ALL))
    done = pyvmm("kconfig", "--check", tmp_path / "config")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_one_transport_is_enough():
    without = dict.fromkeys(("CONFIG_VIRTIO_MMIO", "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES"), "")
    assert lacking(ALL | without) == {}
    assert lacking(ALL | {"CONFIG_VIRTIO_PCI": ""}) == {}
    both = lacking(ALL | without | {"CONFIG_VIRTIO_PCI": "m"})
    assert [title.partition(":")[0] for title in both] == ["virtio over MMIO", "virtio over PCI"]


@pytest.mark.needs("tiny-image")
def test_a_configuration_that_was_built_lacks_nothing():
    assert lacking(read_config(image("config"))) == {}


def kernel_with(config):
    return b"\x7fELF" + bytes(1000) + b"IKCFG_ST" + gzip.compress(config) + b"IKCFG_ED" + bytes(100)


def test_a_configuration_is_found_in_its_forms(tmp_path):
    path = tmp_path / "file"
    for data in (
        written(ALL),
        gzip.compress(written(ALL)),
        kernel_with(written(ALL)),
        gzip.compress(kernel_with(written(ALL))),
    ):
        path.write_bytes(data)
        assert read_config(str(path)) == ALL
    assert own_config(b"IKCFG_ST\x1f\x8bno gzip") is None and own_config(b"") is None


@pytest.mark.parametrize(
    "data",
    [
        b"hello\n",
        b"\x7fELF" + bytes(5000),
        gzip.compress(b"x"),
        b"\x1f\x8b nothing",
        bytes(0x202) + b"HdrS" + bytes(3000),
    ],
)
def test_what_is_no_configuration_is_one_line(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="neither a kernel's configuration nor a kernel that has its own"):
        read_config(str(path))


def test_a_configuration_that_is_not_there(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(LoadError):
            read_config(str(path))
    done = pyvmm("kconfig", "--check", tmp_path / "nothing")
    assert done.returncode == 127 and len(done.stderr.splitlines()) == 1
    assert pyvmm("kconfig", "what").returncode == 2


def test_merge_config_takes_it(tmp_path):
    """What Linux's scripts/kconfig/merge_config.sh does with a fragment: later lines win, comments are nothing."""
    script = r"sed -n -e 's/^\(CONFIG_[a-zA-Z0-9_]*\)[= ].*/\1/p' -e 's/^# \(CONFIG_[a-zA-Z0-9_]*\) is not set$/\1/p'"
    done = subprocess.run(["sh", "-c", script], input=fragment().encode(), capture_output=True, check=True, timeout=10)
    assert done.stdout.decode().split() == list(ALL)


# --- A guest whose agent does not come up ----------------------------------------------------------------------------


def vm(tmp_path, config=None, status=0, device=None, console="", exit=None):
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"\x7fELF" + bytes(100) if config is None else kernel_with(written(config)))
    return SimpleNamespace(
        config=SimpleNamespace(kernel=str(kernel)),
        console_log=console.encode(),
        exit=exit and SimpleNamespace(reason=exit),
        slots=(SimpleNamespace(device=device),),
        _virtio=SimpleNamespace(console=SimpleNamespace(status=status)),
    )


def test_a_kernel_with_its_configuration_tells_what_it_lacks(tmp_path):
    one = vm(tmp_path, ALL | {"CONFIG_VIRTIO_CONSOLE": "m", "CONFIG_VIRTIO_BLK": ""}, STATUS_ACKNOWLEDGE)
    assert likely_lacking(one) == "its kernel lacks CONFIG_VIRTIO_CONSOLE (pyvmm kconfig)"


@pytest.mark.parametrize(
    ("console", "status", "device", "said"),
    [
        ("VFS: Unable to mount root fs on unknown-block(0,0)", 0, None, "CONFIG_BLK_DEV_INITRD"),
        ("Requested init /init failed (error -8).", 0, None, "CONFIG_BINFMT_SCRIPT or CONFIG_BINFMT_ELF"),
        ("", 0, None, "CONFIG_VIRTIO_MMIO or CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES"),
        ("", 0, 3, "CONFIG_VIRTIO_PCI"),
        ("", STATUS_ACKNOWLEDGE, None, "CONFIG_VIRTIO_CONSOLE"),
    ],
)
def test_others_show_it_by_what_they_do(tmp_path, console, status, device, said):
    told = f"its kernel probably lacks {said} (pyvmm kconfig)"
    assert likely_lacking(vm(tmp_path, None, status, device, console)) == told
    assert likely_lacking(vm(tmp_path, None, status, device, console, "time-limit")) == told
    panicked = vm(tmp_path, None, status, device, console, "panic")
    assert likely_lacking(panicked) == (told if console else "")


def test_a_guest_with_a_driver_lacks_nothing_that_is_known(tmp_path):
    one = vm(tmp_path, None, STATUS_ACKNOWLEDGE | STATUS_DRIVER, console="hello")
    assert likely_lacking(one) == driverless(one) == ""
    one._virtio = None
    assert driverless(one) == ""
