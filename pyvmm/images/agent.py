"""Compiles the agent that goes into an initramfs, with the host's gcc. Imports its own package.

It is made without a libc and without SSE registers, so that it is small and the same everywhere: see
guest-images/agent/libc.c. The same sources and compiler give the same bytes.
"""

from __future__ import annotations

import os

from pyvmm.images import host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = "agent"
"""Its sources, below guest-images/."""
TOOLS = {"gcc": "gcc", "ld": "binutils"}
OPTIONS = (
    "-std=gnu11", "-O2", "-ffunction-sections", "-U_FORTIFY_SOURCE",
    "-ffreestanding", "-fno-tree-loop-distribute-patterns", "-mgeneral-regs-only",
    "-fno-pic", "-fno-pie", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none",
    "-Wa,-mx86-used-note=no",
    "-nostdlib", "-static", "-no-pie", "-s",
    "-Wl,--gc-sections", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,max-page-size=4096",
    "-Wl,-z,noseparate-code",
)  # fmt: skip


def identity() -> str:
    """Names the compiler. Raises ImageError where there is none."""
    host.require(TOOLS, "building the guest's agent")
    return f"agent by {host.version('gcc')}, {host.version('ld')}"


def build(sources: Mapping[str, bytes], folder: str) -> bytes:
    """The program. `sources` maps names to content; they are laid out in the empty `folder`, which is made.

    Raises ImageError with the compiler's complaint.
    """
    os.makedirs(folder, exist_ok=True)
    for name, content in sources.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)
    names = sorted(name for name in sources if name.endswith(".c"))
    host.run(["gcc", *OPTIONS, "-o", "pyvmm-agent", *names], "building the guest's agent", folder=folder)
    with open(os.path.join(folder, "pyvmm-agent"), "rb") as file:
        return file.read()
