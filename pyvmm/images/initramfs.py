"""Makes the initramfs of a Linux image: busybox, our agent, the recipe's files, and modules where the kernel has any.

Imports errors and its own package.
"""

from __future__ import annotations

import os

from pyvmm.errors import ImageError
from pyvmm.images import host
from pyvmm.images.newc import Archive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.images.host import Report
    from pyvmm.images.linux import LinuxRecipe

CONSOLE = (5, 1)
"""/dev/console (admin-guide/devices.txt of Linux), which the kernel opens for process 1 before anything is mounted."""
MODULE_LIST = "etc/modules"
"""Where /init finds the modules to load: a path on each line, dependencies first."""

ELF64_X86 = b"\x7fELF\x02\x01"
E_TYPE, E_MACHINE, E_PHOFF, E_PHNUM, PHENTSIZE = 16, 18, 32, 56, 56
EM_X86_64, PT_INTERP = 62, 3


def make(recipe: LinuxRecipe, busybox: bytes, modules: list[tuple[str, bytes]], agent: bytes = b"") -> bytes:
    """The archive. `modules` are paths and contents in the order in which they can be loaded, `agent` a program."""
    archive = Archive()
    folders = dict.fromkeys(recipe.folders)
    for path, _ in modules:
        folders.update(dict.fromkeys(_parents(path)))
    for folder in folders:
        archive.folder(folder, 0o1777 if folder == "tmp" else 0o755)
    archive.character_device("dev/console", 0o600, *CONSOLE)
    archive.file("bin/busybox", busybox, 0o755)
    if recipe.agent:
        archive.file(recipe.agent, agent, 0o755)
    for path, content in sorted(recipe.files.items()):
        archive.file(path, content, 0o755 if content.startswith(b"#!") else 0o644)
    for path, target in sorted(recipe.symlinks.items()):
        archive.symlink(path, target)
    for path, content in modules:
        archive.file(path, content)
    if modules:
        archive.file(MODULE_LIST, "".join(f"/{path}\n" for path, _ in modules).encode())
    return archive.finish()


def _parents(path: str) -> list[str]:
    names = path.split("/")
    return ["/".join(names[:count]) for count in range(1, len(names))]


def busybox_identity(recipe: LinuxRecipe, given: str | None) -> str:
    """Names the busybox that an image is made with: the package's version, or a digest of the file `given`."""
    if given is None:
        return f"{recipe.busybox} {host.candidate(recipe.busybox)}"
    return f"sha256 {host.digest([_read(given)])}"


def busybox(recipe: LinuxRecipe, given: str | None, folder: str, report: Report) -> bytes:
    """busybox from the file `given`, or else from Debian's package, which is unpacked in `folder`.

    Raises ImageError where it is no static program for x86-64.
    """
    if given is None:
        host.require(host.APT, f"downloading {recipe.busybox}", "or --busybox FILE")
        package = host.download(recipe.busybox, os.path.join(folder, "download"), report)
        host.unpack(package, os.path.join(folder, recipe.busybox))
        places = [os.path.join(folder, recipe.busybox, place) for place in ("usr/bin/busybox", "bin/busybox")]
        given = next(filter(os.path.isfile, places), places[0])
    program = _read(given)
    _judge(program, given)
    return program


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error


def _judge(program: bytes, path: str) -> None:
    def number(offset: int, size: int) -> int:
        return int.from_bytes(program[offset : offset + size], "little")

    if not program.startswith(ELF64_X86) or number(E_MACHINE, 2) != EM_X86_64:
        raise ImageError(f"{path} is no program for x86-64 (expected a static busybox)")
    table, count = number(E_PHOFF, 8), number(E_PHNUM, 2)
    if any(number(table + index * PHENTSIZE, 4) == PT_INTERP for index in range(count)):
        raise ImageError(f"{path} needs shared libraries (expected a static busybox)")
