"""Builds a Linux image from its recipe, and names what it would be built from.

Imports errors and its own package.
"""

from __future__ import annotations

import os
import shutil

from pyvmm.errors import ImageError
from pyvmm.images import agent, host, initramfs, kernel, packaged, source, store
from pyvmm.images.linux import SourceKernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.images.host import Report
    from pyvmm.images.linux import LinuxRecipe
    from pyvmm.images.store import Image


class Inputs:
    """What the user brings: `kernel_source`, a tree, tarball or .deb, and `busybox`, a program; None is Debian's."""

    __slots__ = ("busybox", "kernel_source")

    def __init__(self, kernel_source: str | None = None, busybox: str | None = None) -> None:
        self.kernel_source = kernel_source
        self.busybox = busybox


def made_from(recipe: LinuxRecipe, inputs: Inputs) -> tuple[str, ...]:
    """Sources and tools of the image, a line each. Raises ImageError for what this host does not have."""
    parts: tuple[str, ...]
    if isinstance(recipe.kernel, SourceKernel):
        kernel.require_tools(inputs.kernel_source)
        parts = (source.identity(recipe.kernel, inputs.kernel_source), *kernel.tool_versions())
    else:
        host.require(host.APT, f"the image {recipe.name}")
        parts = (packaged.identity(recipe.kernel),)
    program = (agent.identity(),) if recipe.agent else ()
    return (*parts, *program, initramfs.busybox_identity(recipe, inputs.busybox))


def key(recipe: LinuxRecipe, parts: tuple[str, ...]) -> str:
    """Names all that the image depends on; `parts` is what made_from() gave."""
    return host.digest((recipe.digest(), *parts))


def build(recipe: LinuxRecipe, inputs: Inputs, jobs: int, report: Report) -> Image:
    """The image, built if it is not there, going on where an earlier build was interrupted. Raises ImageError."""
    parts = made_from(recipe, inputs)
    wanted = key(recipe, parts)
    try:
        with store.locked(recipe.name, report):
            image = store.find(recipe.name, wanted)
            if image is None:
                image = _build_locked(recipe, inputs, wanted, parts, jobs, report)
            store.point_to(image)
            return image
    except OSError as error:
        raise ImageError(f"building the image {recipe.name}: {error}") from error


def _build_locked(
    recipe: LinuxRecipe, inputs: Inputs, wanted: str, parts: tuple[str, ...], jobs: int, report: Report
) -> Image:
    kernel_parts = parts[: -2 if recipe.agent else -1]  # the same whichever busybox and agent are beside it
    digits = host.digest((*recipe.kernel.parts(), *kernel_parts))[: store.DIGITS]
    work = os.path.join(store.folder_of(recipe.name), f"{store.WORK}{digits}")
    finished = os.path.join(store.folder_of(recipe.name), f"kernel-{digits}")
    if not os.path.isdir(finished):
        _require_space(recipe, work)
    os.makedirs(work, exist_ok=True)
    busybox = initramfs.busybox(recipe, inputs.busybox, work, report)
    program = agent.build(recipe.agent_sources, os.path.join(work, "agent")) if recipe.agent else b""
    modules: list[tuple[str, bytes]] = []
    files: dict[str, str | bytes] = {}
    if isinstance(recipe.kernel, SourceKernel):
        if not os.path.isdir(finished):
            _compile(recipe.kernel, inputs.kernel_source, work, finished, jobs, report)
        files.update({name: os.path.join(finished, name) for name in kernel.OUTPUTS})
    else:
        unpacked = packaged.fetch(recipe.kernel, work, report)
        files.update(packaged.files(unpacked))
        modules = packaged.load_order(unpacked, recipe.kernel.modules)
    files["initrd.cpio"] = initramfs.make(recipe, busybox, modules, program)
    image = store.publish(recipe.name, wanted, recipe.digest(), parts, files)
    report("cleaning up", 0, 0)
    for left in os.listdir(store.folder_of(recipe.name)):  # of this build, and of earlier ones that nobody finished
        if left.startswith(store.WORK):
            shutil.rmtree(os.path.join(store.folder_of(recipe.name), left))
    return image


def _compile(recipe: SourceKernel, given: str | None, work: str, finished: str, jobs: int, report: Report) -> None:
    """Leaves what the kernel's build gives in the folder `finished`, which appears when it is complete."""
    outputs = kernel.build(recipe, given, work, jobs, report)
    os.makedirs(unfinished := os.path.join(work, "finished"), exist_ok=True)
    for name, path in outputs.items():
        shutil.copyfile(path, os.path.join(unfinished, name))
    os.rename(unfinished, finished)


def _require_space(recipe: LinuxRecipe, work: str) -> None:
    parent = os.path.dirname(work)
    needed = recipe.kernel.space
    free = shutil.disk_usage(parent).free
    if not os.path.exists(work) and free < needed:
        raise ImageError(
            f"{parent} has {free >> 20} MiB free (expected {needed >> 20} for building the image {recipe.name}); set "
            "PYVMM_CACHE to a folder with more"
        )
