"""Loading a kernel given as bytes, and looking at what became of guest memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyvmm.boot import LoadedKernel, load
from pyvmm.config import VmConfig
from pyvmm.layout import ram_ranges
from pyvmm.memory import GuestMemory

MIB = 1 << 20


def allocate(size: int = 16 * MIB) -> GuestMemory:
    """RAM of `size` bytes where a VM has it."""
    return GuestMemory.allocate(ram_ranges(size))


def load_bytes(
    folder: Path, kernel: bytes, memory: GuestMemory | None = None, name: str = "kernel", **settings: Any
) -> tuple[LoadedKernel, GuestMemory]:
    """Write `kernel` to `folder` and load it by `settings` of VmConfig; `initrd` may be bytes too."""
    path = folder / name
    path.write_bytes(kernel)
    if isinstance(settings.get("initrd"), bytes):
        (folder / "initrd").write_bytes(settings["initrd"])
        settings["initrd"] = folder / "initrd"
    memory = allocate() if memory is None else memory
    return load(VmConfig(path, **settings), memory), memory


def text(memory: GuestMemory, gpa: int, limit: int = 65536) -> str:
    """The NUL-terminated string at `gpa`."""
    return memory.read(gpa, limit).split(b"\0")[0].decode()


def untouched(memory: GuestMemory, loaded: LoadedKernel) -> bool:
    """Whether all RAM outside the loaded kernel's pieces is still zero."""
    for region in memory.regions:
        at, end = region.gpa, region.gpa + region.length
        for piece in loaded.pieces:
            if region.gpa <= piece.gpa < end:
                if memory.read(at, piece.gpa - at).strip(b"\0"):
                    return False
                at = piece.end
        if memory.read(at, end - at).strip(b"\0"):
            return False
    return True
