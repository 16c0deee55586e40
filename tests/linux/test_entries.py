"""A bzImage that unpacks itself, entered by either boot protocol: minutes where the host emulates ring 0."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.support.cli import pyvmm
from tests.support.linux import GREETING, image

MINUTES = 15
pytestmark = [pytest.mark.needs("kvm", "tiny-image"), pytest.mark.soak, pytest.mark.timeout((MINUTES + 1) * 60)]

XLOADFLAGS = 0x236  # boot.rst, "Details of Header Fields"; bit 0 says that there is a 64-bit entry


@pytest.mark.parametrize("bits", [32, 64])
def test_it_unpacks_itself(tmp_path: Path, bits: int) -> None:
    kernel = bytearray(Path(image("bzimage")).read_bytes())
    flags = struct.unpack_from("<H", kernel, XLOADFLAGS)[0]
    assert flags & 1
    if bits == 32:
        struct.pack_into("<H", kernel, XLOADFLAGS, flags & ~1)
    path = tmp_path / "bzImage"
    path.write_bytes(kernel)
    arguments = [path, "--initrd", image("initrd"), "--kernel-entry", "bzimage", "--append", "nokaslr pyvmm.poweroff"]
    done = pyvmm("run", *arguments, "--timeout", f"{MINUTES}m", timeout=(MINUTES + 1) * 60)
    assert done.returncode == 0, done.stderr.decode()
    assert GREETING.search(done.stdout.decode())
