"""Booting the tiny Linux in tests: the image's files, a boot from start to power-off, a shell to type at.

A boot takes about ten seconds where the host emulates ring 0, and several times that on a loaded machine: tests share
boots through module-scoped fixtures, and LIMIT is generous.
"""

from __future__ import annotations

import functools
import json
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.support.cli import pyvmm
from tests.support.session import Session

LIMIT = 240
"""Seconds that anything in a Linux guest may take."""
MEMORY = 512
"""MiB of a guest that is to say how much it has: of 128 the kernel itself keeps more than a twentieth."""
GREETING = re.compile(r"^pyvmm: greeting=(\S+) kernel=(\S+) memory=(\d+)kB cpus=(\d+)\r$", re.MULTILINE)
PROMPT = b"tiny> "
PREPARE = "stty columns 999; PS1='tiny''> '"
"""Typed at the shell's own prompt: nothing of a line's echo is wrapped, and PROMPT is only seen where it is one."""


@functools.cache
def image(file: str) -> str:
    """The path of the tiny image's `kernel`, `bzimage`, `initrd` or `config`."""
    from pyvmm.images import image as find

    path: str = getattr(find("tiny"), file)
    return path


@functools.cache
def release() -> str:
    """What `uname -r` says in the tiny image, as the kernel's banner has it."""
    found = re.search(rb"Linux version (\S+) ", Path(image("kernel")).read_bytes())
    assert found
    return found[1].decode()


class Boot:
    """One boot to its end: its random `word`, what the guest printed, what pyvmm said, its status and report."""

    def __init__(self, *arguments: object, append: str = "", poweroff: bool = True) -> None:
        self.word = secrets.token_hex(8)
        words = f"pyvmm.greeting={self.word} {'pyvmm.poweroff ' if poweroff else ''}{append}"
        with TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            limits = ("--timeout", LIMIT, "--report", report)
            done = pyvmm("run", *arguments, "--append", words, *limits, timeout=LIMIT + 30)
            self.report: dict[str, Any] = json.loads(report.read_text())
        self.status = done.returncode
        self.console = done.stdout.decode(errors="replace")
        self.errors = done.stderr.decode(errors="replace")

    @property
    def greeting(self) -> tuple[str, str, int, int]:
        """Word, release, memory in KiB and CPUs, as the guest's first program says."""
        found = GREETING.findall(self.console)
        assert len(found) == 1, self.console[-2000:] + self.errors
        word, kernel, memory, cpus = found[0]
        return word, kernel, int(memory), int(cpus)

    def is_well(self, memory: int, cpus: int) -> bool:
        """Whether it came to the greeting that it should, with all it was given (`memory` in MiB), and switched off."""
        word, kernel, found, online = self.greeting
        assert (word, kernel, online) == (self.word, release(), cpus)
        assert 0.95 * memory * 1024 <= found <= memory * 1024
        assert (self.status, self.report["reason"]) == (0, "power-off"), self.errors
        return True


def boots(*variants: tuple[tuple[object, ...], str]) -> list[Boot]:
    """Boot all `variants`, each (arguments, words of --append), at the same time."""
    with ThreadPoolExecutor(len(variants)) as pool:
        return list(pool.map(lambda variant: Boot(*variant[0], append=variant[1]), variants))


class Shell(Session):
    """`pyvmm run` with the image's shell on a terminal."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments, limit=LIMIT)
        self.see(b"pyvmm: greeting=", b"# ")
        self.type(PREPARE.encode() + b"\r")
        self.see(PROMPT)

    def forget(self) -> None:
        """Let the next `see` look at what comes from now on."""
        self.shown = b""

    def command(self, line: str) -> str:
        """Type `line`; what it prints, with the terminal's line ends made plain."""
        mark = secrets.token_hex(4)
        self.forget()
        # The mark is typed in two parts, so that its echo is not taken for it.
        self.type(f"{line}; echo {mark[:4]}''{mark[4:]}\r".encode())
        shown = self.see(mark.encode() + b"\r\n", PROMPT).decode(errors="replace")
        return shown.partition(f"{mark[4:]}\r\n")[2].partition(mark)[0].replace("\r\n", "\n")
