"""Snapshots whose state has a right checksum and a wrong value somewhere: refused in a line, or restored, no more."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pyvmm import VM, Disk, Net, Port, Vsock
from pyvmm.errors import BackendError, LoadError, UsageError
from pyvmm.hardware import Balloon, Rng
from pyvmm.snapshot.file import MAGIC, STATE, VERSION

pytestmark = [pytest.mark.needs("kvm"), pytest.mark.timeout(900)]

SPIN = bytes.fromhex("ebfe")
VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 255, 65535, 0x7FFFFFFF, 1 << 70, 1.5),
    *("", "x", "00" * 8, [], [1], [[1, 2]], {}, {"a": 1}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in the state; of long lists, the first ones."""
    if path:
        yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*path, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:3]):
            yield from places(inner, (*path, number))


@pytest.mark.parametrize("changes", [60, pytest.param(1500, marks=pytest.mark.soak)])
@pytest.mark.parametrize("transport", ["mmio", "pci"])
def test_a_wrong_value_is_refused_or_harmless(
    transport: str, changes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a wrong name may lead
    kernel, disk = tmp_path / "spin.bin", tmp_path / "disk"
    kernel.write_bytes(SPIN)
    disk.write_bytes(bytes(1 << 16))
    vm = VM(
        kernel,
        mem="1M",
        disks=[Disk(disk, overlay=True)],
        net=Net.switch(tmp_path / "switch"),
        ports=[Port("port")],
        rng=Rng(),
        vsock=Vsock(tmp_path / "vsock"),
        balloon=Balloon(),
        transport=transport,
        paused=True,
    )
    with vm:
        vm.snapshot(tmp_path / "s")
    file = tmp_path / "s" / STATE
    good = json.loads(file.read_bytes().partition(b"\n")[2])
    file.chmod(0o644)
    found = list(places(good))
    chance = random.Random(changes)
    restored = refused = 0
    for _ in range(changes):
        state = copy.deepcopy(good)
        *outer, last = chance.choice(found)
        inside = state
        for step in outer:
            inside = inside[step]
        if isinstance(inside, dict) and chance.random() < 0.1:
            del inside[last]
        else:
            inside[last] = copy.deepcopy(chance.choice(VALUES))
        text = json.dumps(state, separators=(",", ":")).encode()
        file.write_bytes(f"{MAGIC} {VERSION} {sha256(text).hexdigest()} {len(text)}\n".encode() + text)
        try:
            clone = VM.restore(tmp_path / "s", paused=True)
            with clone:
                restored += 1
        except (LoadError, UsageError, BackendError) as error:
            refused += 1
            assert "\n" not in str(error), error
    assert refused > restored > 0
