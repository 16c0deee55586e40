"""Where the source of a kernel comes from: Debian's package, or a tree, a tarball or a .deb that the user has.

Imports errors and its own package.
"""

from __future__ import annotations

import os

from pyvmm.errors import ImageError
from pyvmm.images import host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvmm.images.host import Report
    from pyvmm.images.linux import SourceKernel

NOT_NEEDED = (
    "Documentation/*/*", "arch/[!x]*/*.[chS]", "arch/*/boot/dts/*", "drivers/gpu/*.[ch]", "drivers/infiniband/*.[ch]",
    "drivers/media/*.[ch]", "drivers/net/ethernet/*.[ch]", "drivers/net/wireless/*.[ch]", "drivers/scsi/*.[ch]",
    "drivers/staging/*.[ch]", "sound/*.[ch]", "tools/perf/*", "tools/testing/*",
)  # fmt: skip
"""Left packed, most of the source: nothing of it is built. Every Kconfig file is read, so those are not here."""
TOOLS = {"tar": "tar", "xz": "xz-utils"}


def identity(kernel: SourceKernel, given: str | None) -> str:
    """Names the source: package and version, or a digest of what is in the file or folder `given`."""
    if given is None:
        return f"{kernel.package} {host.candidate(kernel.package)}"
    if not os.path.exists(given):
        raise ImageError(f"{given}: there is no such file or folder")
    if given.endswith(".deb"):
        return " ".join(host.describe(given))
    import hashlib

    digest = hashlib.sha256()
    for path in _files(given):
        digest.update(f"{os.path.relpath(path, given)}\0".encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256 {digest.hexdigest()}"


def lay_out(kernel: SourceKernel, given: str | None, work: str, tree: str, report: Report) -> None:
    """Makes `tree`, a copy of the source that may be changed. `work` is a folder for what else is needed.

    Raises ImageError where the source is not a kernel of the series that the recipe is for.
    """
    if given is None:
        given = host.download(kernel.package, os.path.join(work, "download"), report)
    if given.endswith(".deb"):
        report("unpacking the package", 0, 0)
        host.unpack(given, os.path.join(work, "package"))
        given = os.path.join(work, "package", "usr/src", f"{kernel.package}.tar.xz")
    os.makedirs(tree)
    if os.path.isdir(given):
        report("copying the source", 0, 0)
        _copy(given, tree)
    else:
        report("unpacking the source", 0, 0)
        excluded = [f"--exclude=*/{pattern}" for pattern in NOT_NEEDED]
        host.run(
            ["tar", "-x", "--strip-components=1", "--no-same-owner", *excluded, "-C", tree, "-f", given],
            "unpacking the source",
        )
    found = _series(tree)
    if found != kernel.series:
        raise ImageError(f"{given} holds {found or 'no Linux kernel'} (expected a source of Linux {kernel.series})")


def _series(tree: str) -> str:
    """`VERSION.PATCHLEVEL` as the kernel's Makefile says it, or nothing where there is no such Makefile."""
    values = {}
    try:
        with open(os.path.join(tree, "Makefile"), encoding="utf-8", errors="replace") as makefile:
            for line in makefile.readlines(4096):
                name, _, value = line.partition(" = ")
                values[name] = value.strip()
    except OSError:
        return ""
    return f"{values.get('VERSION')}.{values.get('PATCHLEVEL')}" if "PATCHLEVEL" in values else ""


def _files(given: str) -> Iterator[str]:
    """The files of a tree in a fixed order, without what a build left there; or the one file that `given` is."""
    if os.path.isfile(given):
        yield given
        return
    for folder, folders, names in os.walk(given):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not name.endswith((".o", ".a", ".cmd")):
                yield path


def _copy(given: str, tree: str) -> None:
    import shutil

    ignored = shutil.ignore_patterns(".git", "*.o", "*.a")
    shutil.copytree(given, tree, symlinks=True, dirs_exist_ok=True, ignore=ignored)
    host.run(["make", "-s", "mrproper"], "cleaning the copy of the source", folder=tree)
