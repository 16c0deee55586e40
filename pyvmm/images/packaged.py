"""Takes a kernel and its modules from Debian's package as they are.

Imports errors and its own package.
"""

from __future__ import annotations

import os

from pyvmm.errors import ImageError
from pyvmm.images import host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.images.host import Report
    from pyvmm.images.linux import PackagedKernel

ELF64 = b"\x7fELF\x02\x01"


class Unpacked:
    """What the package holds: paths of the kernel (a bzImage), its configuration, and the folder of its modules.

    `version` is the kernel's, as `uname -r` says it.
    """

    __slots__ = ("bzimage", "config", "modules", "version")

    def __init__(self, bzimage: str, config: str, modules: str, version: str) -> None:
        self.bzimage = bzimage
        self.config = config
        self.modules = modules
        self.version = version


def identity(kernel: PackagedKernel) -> str:
    """Names the package that the kernel comes from, with its version."""
    package = host.dependency(kernel.package, "linux-image-")
    return f"{package} {host.candidate(package)}"


def fetch(kernel: PackagedKernel, work: str, report: Report) -> Unpacked:
    """Downloads and unpacks the package in the folder `work`. Raises ImageError where it isn't laid out as expected."""
    package = host.dependency(kernel.package, "linux-image-")
    path = host.download(package, os.path.join(work, "download"), report)
    folder = os.path.join(work, package)
    report(f"unpacking {package}", 0, 0)
    host.unpack(path, folder)
    version = package.removeprefix("linux-image-")
    found = Unpacked(
        bzimage=os.path.join(folder, "boot", f"vmlinuz-{version}"),
        config=os.path.join(folder, "boot", f"config-{version}"),
        modules=os.path.join(folder, "lib/modules", version),
        version=version,
    )
    for expected in (found.bzimage, found.config, found.modules):
        if not os.path.exists(expected):
            raise ImageError(f"{package} has no {os.path.relpath(expected, folder)}")
    return found


def files(unpacked: Unpacked) -> dict[str, str | bytes]:
    """The image's files: path in the image, and path of the file."""
    found: dict[str, str | bytes] = {"bzImage": unpacked.bzimage, "config": unpacked.config}
    base = os.path.dirname(unpacked.modules)
    for parent, folders, names in os.walk(unpacked.modules):
        folders.sort()
        for path in (os.path.join(parent, name) for name in sorted(names)):
            if not os.path.islink(path):  # `build` and `source` lead to packages that are not here
                found[f"modules/{os.path.relpath(path, base)}"] = path
    return found


def load_order(unpacked: Unpacked, wanted: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """Path in the initramfs and content of the modules `wanted` and of all they depend on, dependencies first.

    What is built into the kernel needs no module and is left out. Raises ImageError for a module that is neither.
    """
    folder = unpacked.modules
    paths = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith((".ko", ".ko.xz")):
                paths[_name(name)] = os.path.join(parent, name)
    with open(os.path.join(folder, "modules.builtin"), encoding="ascii") as file:
        builtin = {_name(os.path.basename(line.strip())) for line in file}
    order: dict[str, tuple[str, bytes]] = {}

    def add(name: str) -> None:
        if name in order or name in builtin:
            return
        if name not in paths:
            raise ImageError(f"{folder} has no module {name}")
        content = _content(paths[name])
        for dependency in dependencies(content, paths[name]):
            add(_name(dependency))
        order[name] = (
            f"lib/modules/{unpacked.version}/{os.path.relpath(paths[name], folder)}".removesuffix(".xz"),
            content,
        )

    for name in wanted:
        add(_name(name))
    return list(order.values())


def _name(file_name: str) -> str:
    """A module's name: the same however its file is packed, and with `-` and `_` the same."""
    return file_name.removesuffix(".xz").removesuffix(".ko").replace("-", "_")


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        content = file.read()
    if path.endswith(".xz"):
        import lzma

        return lzma.decompress(content)
    return content


def dependencies(module: bytes, path: str) -> list[str]:
    """The names after `depends=` in the section .modinfo of an ELF64 `module`; `path` is for errors."""

    def number(offset: int, size: int) -> int:
        return int.from_bytes(module[offset : offset + size], "little")

    if not module.startswith(ELF64):
        raise ImageError(f"{path} is no kernel module")
    table, entry, count, names = number(0x28, 8), number(0x3A, 2), number(0x3C, 2), number(0x3E, 2)
    strings = number(table + names * entry + 0x18, 8)  # sh_offset of the section with the sections' names
    for index in range(count):
        section = table + index * entry
        name = strings + number(section, 4)
        if module[name : name + 9] == b".modinfo\0":
            offset, size = number(section + 0x18, 8), number(section + 0x20, 8)
            for item in module[offset : offset + size].split(b"\0"):
                key, _, value = item.decode(errors="replace").partition("=")
                if key == "depends":
                    return [found for found in value.split(",") if found]
    return []
