"""Builds a Linux kernel from source by a recipe, so that the same recipe, source and tools give the same bytes.

Imports errors and its own package. The kernel's own rules for that: Documentation/kbuild/reproducible-builds.rst.
"""

from __future__ import annotations

import os

from pyvmm.errors import ImageError
from pyvmm.images import host, source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.images.host import Report
    from pyvmm.images.linux import SourceKernel

OUTPUTS = {"vmlinux": "vmlinux", "bzImage": "arch/x86/boot/bzImage", "config": ".config", "System.map": "System.map"}
"""What a build gives, and where in the tree it is found."""
TOOLS = {
    "gcc": "gcc", "as": "binutils", "ld": "binutils", "make": "make", "flex": "flex", "bison": "bison", "bc": "bc",
    "patch": "patch", "gzip": "gzip", "awk": "mawk", **source.TOOLS,
}  # fmt: skip
"""The programs it takes, and the Debian packages that have them."""
IDENTITY = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER": "pyvmm",
    "KBUILD_BUILD_HOST": "pyvmm",
    "KBUILD_BUILD_VERSION": "1",
}
"""What `uname -v` and /proc/version say of when and where: always the same."""
CONFIGURED = ".configured"
"""In the tree, written when its .config is what the recipe asks for."""


def require_tools(given: str | None) -> None:
    """Raises ImageError, which names all that are missing at once, where the kernel cannot be built here."""
    own_source = given is not None and not given.endswith(".deb")
    packages = TOOLS if own_source else {**TOOLS, **(host.APT if given is None else {"dpkg-deb": "dpkg"})}
    host.require(packages, "building the kernel", "" if own_source else "or --kernel-source TREE, where only apt lacks")
    try:
        host.run(["gcc", "-xc", "-E", "-"], "a look at the C library", stdin=b"#include <stdio.h>\n")
    except ImageError:
        raise ImageError(
            "building the kernel needs the C library's headers (Debian: apt-get install libc6-dev)"
        ) from None


def tool_versions() -> tuple[str, str]:
    """Compiler and binutils."""
    return host.version("gcc"), host.version("ld")


def build(kernel: SourceKernel, given: str | None, work: str, jobs: int, report: Report) -> dict[str, str]:
    """Builds in the folder `work`, going on where an earlier build there was interrupted.

    Returns the paths of what came out, by the names in OUTPUTS. Raises ImageError with the first complaint.
    """
    tree = os.path.join(work, "linux")
    if not os.path.isdir(tree):
        _prepare(kernel, given, work, tree, report)
    if not os.path.exists(os.path.join(tree, CONFIGURED)):
        report("configuring", 0, 0)
        _configure(kernel, tree)
    _make(kernel, tree, os.path.join(work, "build.log"), jobs, report)
    return {name: os.path.join(tree, path) for name, path in OUTPUTS.items()}


def _prepare(kernel: SourceKernel, given: str | None, work: str, tree: str, report: Report) -> None:
    """Makes the patched `tree`, which has its name only when it is complete."""
    import shutil

    shutil.rmtree(unfinished := f"{tree}.unfinished", ignore_errors=True)
    source.lay_out(kernel, given, work, unfinished, report)
    for name, patch in kernel.patches:
        host.run(["patch", "-p1", "--batch", "--forward"], f"applying {name}", folder=unfinished, stdin=patch)
    os.rename(unfinished, tree)


def _configure(kernel: SourceKernel, tree: str) -> None:
    purpose = "configuring the kernel"
    host.run(["make", "-s", "tinyconfig"], purpose, folder=tree)
    with open(os.path.join(tree, ".config"), "a", encoding="ascii") as file:  # a later line overrides an earlier one
        file.write(kernel.config)
    host.run(["make", "-s", "olddefconfig"], purpose, folder=tree)
    with open(os.path.join(tree, ".config"), encoding="ascii") as file:
        lost = refused(kernel.config, file.read())
    if lost:
        raise ImageError(f"{purpose}: Kconfig does not take {', '.join(lost)}")
    with open(os.path.join(tree, CONFIGURED), "wb"):
        pass


def refused(wanted: str, config: str) -> list[str]:
    """The lines of the fragment `wanted` that are not so in `config`. An option that is off need not be named there."""
    lines = set(config.splitlines())
    values = {line.partition("=")[0] for line in lines}
    on = [line for line in wanted.splitlines() if line.startswith("CONFIG_")]
    off = [line for line in wanted.splitlines() if line.startswith("# CONFIG_") and line.endswith(" is not set")]
    return [line for line in on if line not in lines] + [line for line in off if line.split()[1] in values]


def _make(kernel: SourceKernel, tree: str, log_path: str, jobs: int, report: Report) -> None:
    import subprocess

    command = ["make", f"-j{jobs}", "vmlinux", "bzImage"]
    done = sum(name.endswith(".o") for _, _, names in os.walk(tree) for name in names)  # by an earlier build
    with open(log_path, "wb") as log:
        process = subprocess.Popen(
            command,
            cwd=tree,
            env=host.environment() | IDENTITY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            close_fds=False,  # it holds the cache's lock too: nobody else builds here while a part of it lives
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                log.write(line)
                if line.startswith(b"  "):  # "  CC      init/main.o": kbuild says what it does
                    done += 1
                    report("compiling", min(done, kernel.steps - 1), kernel.steps)
            status = process.wait()
        finally:
            process.terminate()  # make ends those that it started, and removes what they had not finished
            process.wait()
            process.stdout.close()
    if status:
        raise ImageError(f"building the kernel: {_complaint(log_path, status)} (all of it: {log_path})")


def _complaint(log_path: str, status: int) -> str:
    with open(log_path, encoding="utf-8", errors="replace") as log:
        lines = [line.strip() for line in log if "rror" in line]
    return lines[0] if lines else f"make ended with {status}"
