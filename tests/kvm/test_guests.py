"""Every guest of guest-images/, run as a user runs it: output and exit status are those of its guest.toml."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.images import Run, guest, guest_names
from tests.support.cli import PYVMM

ROOT = Path(__file__).parents[2]
RUNS = [(name, run) for name in guest_names() for run in guest(name).runs]

pytestmark = [pytest.mark.needs("kvm"), pytest.mark.needs("gcc")]


def pyvmm_run(name: str, *arguments: str, stdin: bytes = b"", limit: float = 20) -> subprocess.CompletedProcess[bytes]:
    command = [*PYVMM, "run", guest(name).path(), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=limit)


@pytest.mark.parametrize("exits", ["fast", "plain"])
@pytest.mark.parametrize(("name", "run"), RUNS, ids=[f"{name}-{run.name}" for name, run in RUNS])
def test_it_does_what_its_recipe_says(name: str, run: Run, exits: str) -> None:
    expect = run.expect
    result = pyvmm_run(name, "--exits", exits, *run.arguments, stdin=run.stdin, limit=expect.time_limit)
    assert expect.matches(result.stdout), result.stdout.decode(errors="replace") + result.stderr.decode()
    assert result.returncode == expect.status, result.stderr.decode()
    if expect.status < 121:  # a guest that ends by itself leaves nothing to say
        assert result.stderr == b""


@pytest.mark.parametrize("protocol", ["pvh", "multiboot"])
def test_a_module_arrives_whole(protocol: str, tmp_path: Path) -> None:
    module = tmp_path / "module"
    module.write_bytes(b"line by line\n" * 400)  # more than a page, and no multiple of one
    result = pyvmm_run("boot-info", "--kernel-format", protocol, "--initrd", str(module))
    head, _, text = result.stdout.partition(b"\nmodule ")
    place, _, text = text.partition(b"\n")
    assert re.fullmatch(rb"0x[0-9a-f]{12} \+ 0x[0-9a-f]{12}", place), head
    assert int(place.split()[2], 16) == module.stat().st_size
    assert text == module.read_bytes()


def test_the_memory_map_is_that_of_the_machine() -> None:
    maps = [
        re.findall(
            rb"memory (\w+) \+ (\w+) type (\d+)", pyvmm_run("boot-info", "--mem", "4G", "--kernel-format", p).stdout
        )
        for p in ("pvh", "multiboot")
    ]
    assert maps[0] == maps[1]
    ram = [(int(start, 16), int(size, 16)) for start, size, kind in maps[0] if kind == b"1"]
    assert (0x1_0000_0000, 0x4000_0000) in ram
    assert (0x10_0000, 0xC000_0000 - 0x10_0000) in ram


def test_the_device_that_the_readme_of_mmio_hello_attaches_hears_it() -> None:
    """The Python code is taken from the README, so that what people copy works."""
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "guest-images/mmio-hello/README.md").read_text(), re.DOTALL)
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert result.stderr == ""
    assert result.stdout == repr(b"Hello through MMIO!\n") + "\n"
