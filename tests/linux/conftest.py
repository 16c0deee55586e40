"""A boot that several files look at: the tiny Linux from `pyvmm run --trace` to power-off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.linux import MEMORY, Boot, image


@pytest.fixture(scope="session")
def traced_boot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """`boot`, with a verbose console, a disk and random numbers on PCI; `path` is its trace. For tests run alone."""
    folder: Path = tmp_path_factory.mktemp("traced")
    disk, trace = folder / "disk", folder / "boot.jsonl"
    disk.write_bytes(bytes(8 << 20))
    devices = ("--mem", f"{MEMORY}M", "--disk", disk, "--rng", "--transport", "pci", "--trace", trace)
    boot = Boot(image("kernel"), "--initrd", image("initrd"), *devices)
    assert boot.status == 0, boot.errors
    yield SimpleNamespace(boot=boot, path=trace)
