"""The programs that are measured side by side, and how each runs the `exits` guest.

A contender turns (guest's command line, memory in MiB) into an argv. All run the same ELF file by its PVH entry with
one vCPU, and all end through the debug-exit port, with status 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
MEMORY = 64
"""MiB of guest RAM in every measurement."""

INSTALLED = (sys.executable, "-c", "from pyvmm.cli.main import process; process()")
"""What the script `pyvmm` does that installers make of the entry point; `python -m` has more to import."""

Argv = Callable[[str], list[str]]


class Contender:
    """A VMM under measurement: `argv(command_line)` starts the guest; `kernel` is the guest it runs."""

    def __init__(self, name: str, argv: Argv) -> None:
        self.name = name
        self.argv = argv


def guest(name: str, file: str = "kernel") -> str:
    """The path of one of the small guests, built if it is not in the cache, or of a Linux image's `file`."""
    command = [sys.executable, "-m", "pyvmm", "image", "path", name, file]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout.strip()


def build(name: str, folder: Path, *flags: str) -> str:
    """Compile bench/NAME.c into `folder`, with more `flags` for gcc; the program's path."""
    target = folder / name
    source = ROOT / "bench" / f"{name}.c"
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", *flags, "-o", str(target), str(source)]
    subprocess.run(command, check=True)
    return str(target)


def contenders(kernel: str, floor: str) -> list[Contender]:
    """Floor, pyvmm and, where it is installed, QEMU's microvm machine, each running the guest `kernel`."""
    found = [
        Contender("floor", lambda line: [floor, kernel, str(MEMORY), line]),
        Contender(
            "pyvmm",
            lambda line: [*INSTALLED, "run", kernel, "--mem", f"{MEMORY}M", "--append", line],
        ),
    ]
    qemu = shutil.which("qemu-system-x86_64")
    if qemu:
        # Without the feature, as under pyvmm: not every KVM lets user space set the MSR that comes with it.
        machine = [qemu, "-M", "microvm,acpi=off", "-enable-kvm", "-cpu", "host,-arch-capabilities", "-m", str(MEMORY)]
        machine += [
            "-display",
            "none",
            "-nodefaults",
            "-no-user-config",
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=4",
        ]
        found.append(Contender("qemu", lambda line: [*machine, "-kernel", kernel, "-append", line]))
    return found


def environment() -> dict[str, str]:
    """The environment of what is measured: compiled bytecode is used, as an installed pyvmm would."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
