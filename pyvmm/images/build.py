"""Turns a guest's sources into its image, with the host's gcc, as and ld.

Imports errors and its own package. The same sources, flags and tools give the same bytes: no build ID, path or date.
"""

from __future__ import annotations

import functools
import os

from pyvmm.errors import ImageError
from pyvmm.images.recipe import ELF, FLAT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvmm.images.recipe import Recipe

TOOLS = ("gcc", "as", "ld")
SUFFIX = {FLAT: ".bin", ELF: ".elf"}
LINKER_SCRIPT = "common/guest.ld"
COMPILE_SECONDS = 60
"""No source of ours takes one; a compiler that does not come back is killed."""

_MACHINE = {
    16: ("-m32",),  # the assembler's .code16 does the rest
    32: ("-m32", "-march=i686"),
    64: ("-m64", "-mno-red-zone"),  # an interrupt handler pushes where a leaf function's red zone would be
}
_COMPILE = (
    "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Icommon",
    "-ffreestanding", "-fno-tree-loop-distribute-patterns",  # no library, no calls to memset that nobody wrote
    "-fno-pic", "-fno-pie", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none",
    "-mgeneral-regs-only",  # nobody sets up SSE, and KVM's instruction emulator knows little of it
    "-Wa,-mx86-used-note=no",
)  # fmt: skip
_LINK = (
    "-nostdlib", "-static", "-no-pie", f"-Wl,-T,{LINKER_SCRIPT}",
    "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,max-page-size=4096", "-Wl,-z,noseparate-code",
)  # fmt: skip


def commands(recipe: Recipe, output: str) -> list[list[str]]:
    """The command lines that make the file `output`, to be run in a copy of guest-images/."""
    machine = _MACHINE[recipe.bits]
    objects = [f"{number}.o" for number in range(len(recipe.sources))]
    link = ["gcc", *machine, *_LINK, f"-Wl,--defsym=LOAD_ADDRESS={recipe.address:#x}", "-o", output, *objects]
    if recipe.output == FLAT:
        link.append("-Wl,--oformat=binary")
    compile_each = zip(recipe.sources, objects, strict=True)
    return [["gcc", *machine, *_COMPILE, "-c", source, "-o", to] for source, to in compile_each] + [link]


@functools.cache
def tool_versions() -> tuple[str, ...]:
    """The first line that each of TOOLS says about its version. Raises ImageError, which names all that are missing."""
    import shutil
    import subprocess

    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise ImageError(
            f"building guests needs {', '.join(missing)}, not found here (Debian: apt-get install gcc binutils)"
        )
    return tuple(
        subprocess.run(
            [tool, "--version"], capture_output=True, text=True, timeout=COMPILE_SECONDS, env=_environment()
        ).stdout.partition("\n")[0]
        for tool in TOOLS
    )


def key(recipe: Recipe, files: dict[str, bytes], output: str) -> str:
    """Names all that the image depends on: `files` (path below guest-images/ and content), command lines, tools."""
    import hashlib

    digest = hashlib.sha256()
    for part in (*tool_versions(), repr(commands(recipe, output))):
        digest.update(part.encode() + b"\0")
    for path, content in sorted(files.items()):
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def build(recipe: Recipe, files: Iterable[tuple[str, bytes]], output: str, folder: str) -> None:
    """Lays `files` out in the empty `folder` and builds `output` there. Raises ImageError with the tool's complaint."""
    for path, content in files:
        target = os.path.join(folder, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(content)
    for command in commands(recipe, output):
        _run(command, output, folder)


def _run(command: list[str], output: str, folder: str) -> None:
    import subprocess

    try:
        result = subprocess.run(
            command,
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMPILE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ImageError(f"building {output}: gcc took more than {COMPILE_SECONDS} s") from None
    if result.returncode:
        complaint = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines()
        raise ImageError(f"building {output}: {complaint[0] if complaint else f'gcc ended with {result.returncode}'}")


def _environment() -> dict[str, str]:
    """The environment without what would change messages or results."""
    drop = ("LANGUAGE", "CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH", "GCC_EXEC_PREFIX", "COMPILER_PATH", "LD_RUN_PATH")
    return {name: value for name, value in os.environ.items() if name not in drop} | {"LC_ALL": "C"}
