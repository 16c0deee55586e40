"""Reads the `recipe.toml` of a Linux image: where its kernel comes from and what its initramfs holds.

Imports errors and its own package. docs/images.md describes the file; every ImageError names file and key.
"""

from __future__ import annotations

from pyvmm.errors import ImageError
from pyvmm.images import agent, host
from pyvmm.images.table import Table, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

METHOD = 1
"""Counts up when what this package does with a recipe changes what comes out."""


class SourceKernel:
    """A kernel that is compiled.

    `package` is the Debian package with the source, `series` the kernel's `VERSION.PATCHLEVEL` that the `patches`
    (name and content, in order) are for; `config` is merged over `make tinyconfig`. `steps` and `minutes` say how
    much work it was where it was measured, on two cores.
    """

    __slots__ = ("config", "minutes", "package", "patches", "series", "steps")
    space = 1 << 30
    """Bytes that source and objects take while the kernel is built."""

    def __init__(
        self, package: str, series: str, config: str, patches: tuple[tuple[str, bytes], ...], steps: int, minutes: float
    ) -> None:
        self.package = package
        self.series = series
        self.config = config
        self.patches = patches
        self.steps = steps
        self.minutes = minutes

    def parts(self) -> list[str | bytes]:
        """All of the recipe that the kernel depends on."""
        return [self.package, self.config, *(content for _, content in self.patches)]


class PackagedKernel:
    """A kernel taken from the Debian package that `package` depends on; `modules` go into the initramfs."""

    __slots__ = ("modules", "package")
    space = 1 << 28
    """Bytes that the package takes, packed and unpacked."""

    def __init__(self, package: str, modules: tuple[str, ...]) -> None:
        self.package = package
        self.modules = modules

    def parts(self) -> list[str | bytes]:
        return [self.package, *self.modules]


class LinuxRecipe:
    """A recipe.toml.

    `files` maps paths in the initramfs to their content, `folders` and `symlinks` (path and target) are there beside
    them; `busybox` is the Debian package that bin/busybox comes from. `agent` is where the guest's agent is in the
    initramfs, "" where it has none, and `agent_sources` what it is compiled from.
    """

    __slots__ = ("agent", "agent_sources", "busybox", "files", "folders", "kernel", "name", "summary", "symlinks")

    def __init__(
        self,
        name: str,
        summary: str,
        kernel: SourceKernel | PackagedKernel,
        busybox: str,
        files: Mapping[str, bytes],
        folders: tuple[str, ...],
        symlinks: Mapping[str, str],
        agent: str = "",
        agent_sources: Mapping[str, bytes] | None = None,
    ) -> None:
        self.name = name
        self.summary = summary
        self.kernel = kernel
        self.busybox = busybox
        self.files = files
        self.folders = folders
        self.symlinks = symlinks
        self.agent = agent
        self.agent_sources = agent_sources or {}

    def digest(self) -> str:
        """Names all of the recipe that the image depends on; what its tools and sources are is not in it."""
        files = [part for path in sorted(self.files) for part in (path, self.files[path])]
        links = [part for path in sorted(self.symlinks) for part in (path, self.symlinks[path])]
        own = (f"method {METHOD}", self.busybox, *self.folders, *links, *files)
        program = [part for name in sorted(self.agent_sources) for part in (name, self.agent_sources[name])]
        built = (self.agent, *agent.OPTIONS, *program) if self.agent else ()
        return host.digest((*own, *built, *self.kernel.parts()))


def parse(name: str, sources: Mapping[str, bytes]) -> LinuxRecipe:
    """The recipe of the image `name`. `sources` maps paths below guest-images/ to content."""
    place = f"{name}/recipe.toml"
    top = read(sources[place].decode(), place)
    summary = top.take("summary", str)
    kernel: SourceKernel | PackagedKernel
    if top.has("kernel"):
        kernel = _source_kernel(name, top.take_table("kernel"), sources)
    else:
        table = top.take_table("packaged-kernel")
        kernel = PackagedKernel(table.take("package", str), table.take_strings("modules"))
        table.end()
    initramfs = top.take_table("initramfs")
    top.end()
    prefix = initramfs.take("tree", str) + "/"
    files = {path.removeprefix(prefix): content for path, content in sources.items() if path.startswith(prefix)}
    busybox = initramfs.take("busybox", str)
    folders = initramfs.take_strings("folders")
    symlinks = initramfs.take("symlinks", dict)
    program = initramfs.take("agent", str, "")
    initramfs.end()
    if "init" not in files:
        raise ImageError(f"{place}: [initramfs]: there is no file {prefix}init")
    parts = {
        path.removeprefix(f"{agent.FOLDER}/"): content
        for path, content in sources.items()
        if program and path.startswith(f"{agent.FOLDER}/") and path.endswith((".c", ".h"))
    }
    return LinuxRecipe(name, summary, kernel, busybox, files, folders, symlinks, program, parts)


def _source_kernel(name: str, table: Table, sources: Mapping[str, bytes]) -> SourceKernel:
    def source(path: str) -> bytes:
        content = sources.get(f"{name}/{path}")
        if content is None:
            table.fail(f"there is no file {name}/{path}")
        return content

    kernel = SourceKernel(
        package=table.take("package", str),
        series=table.take("series", str),
        config=source(table.take("config", str)).decode(),
        patches=tuple((path, source(path)) for path in table.take_strings("patches")),
        steps=table.take("steps", int),
        minutes=float(table.take("minutes", (int, float))),
    )
    table.end()
    return kernel
