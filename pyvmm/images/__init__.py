"""What comes with pyvmm to be run: small guests, built when they are first asked for, and Linux images, built once.

Imports errors and its own package. Sources are package data (`pyvmm/_images`; guest-images/ in the repository), read
through importlib.resources; what is built goes to the cache, never to where pyvmm is installed.

    from pyvmm.images import guest, image
    guest("hello64").path()      # '/home/me/.cache/pyvmm/guests/1f0c.../hello64.elf'
    image("tiny").kernel         # '/home/me/.cache/pyvmm/images/tiny/7ab2.../vmlinux', after `pyvmm image build tiny`
"""

from __future__ import annotations

import functools

from pyvmm.errors import ImageError, UsageError
from pyvmm.images import agent, build, cache, linux, store
from pyvmm.images.recipe import ELF, Expect, Recipe, Run, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from pyvmm.images.linux import LinuxRecipe
    from pyvmm.images.store import Image

__all__ = ["Expect", "Guest", "Recipe", "Run", "guest", "guest_names", "image", "image_names", "image_recipe"]

RECIPE_FILE = "guest.toml"
IMAGE_RECIPE_FILE = "recipe.toml"
COMMON = "common"


class Guest:
    """A small guest: `name`, its parsed guest.toml (`recipe`), how it may be run (`runs`, at least one), its image."""

    __slots__ = ("name", "recipe")

    def __init__(self, name: str, recipe: Recipe) -> None:
        self.name = name
        self.recipe = recipe

    @property
    def format(self) -> str:
        """For people: `flat, 16-bit` or `ELF, 64-bit`."""
        return f"{'ELF' if self.recipe.output == ELF else 'flat'}, {self.recipe.bits}-bit"

    @property
    def runs(self) -> tuple[Run, ...]:
        return self.recipe.runs

    @property
    def run_arguments(self) -> tuple[str, ...]:
        """What `pyvmm run` needs after the file's name in the first of the runs."""
        return self.runs[0].arguments

    @property
    def expect(self) -> Expect:
        """What the first of the runs shows."""
        return self.runs[0].expect

    def path(self) -> str:
        """The path of the image; builds it if it is not in the cache.

        Raises ImageError where tools are missing, the cache cannot be written, or a source does not compile.
        """
        files = self.files()
        return cache.cached(
            "guests",
            build.key(self.recipe, files, self.output),
            self.output,
            lambda folder: build.build(self.recipe, files.items(), self.output, folder),
        )

    @property
    def output(self) -> str:
        """The name of the image's file."""
        return self.name + build.SUFFIX[self.recipe.output]

    def files(self) -> dict[str, bytes]:
        """Path below guest-images/ and content of everything that the image is built from."""
        root = _root()
        names = [f"{COMMON}/{entry.name}" for entry in root.joinpath(COMMON).iterdir() if entry.is_file()]
        return {name: root.joinpath(name).read_bytes() for name in (*names, *self.recipe.sources)}


def guest(name: str) -> Guest:
    """The guest called `name`. Raises UsageError, which lists the names there are."""
    names = guest_names()
    if name not in names:
        raise UsageError(f"there is no image {name!r} (known: {', '.join(names)})")
    text = _root().joinpath(name, RECIPE_FILE).read_text(encoding="utf-8")
    return Guest(name, parse(text, name))


def guest_names() -> list[str]:
    """The names of all guests, in alphabetical order."""
    return sorted(entry.name for entry in _root().iterdir() if entry.joinpath(RECIPE_FILE).is_file())


def image(name: str) -> Image:
    """The Linux image called `name`: paths of its kernel, bzimage, initrd and config.

    Raises ImageError, which names the command that builds it, where that is still to be done; UsageError for an unknown
    name.
    """
    found = store.current(name, image_recipe(name).digest())
    if found is None:
        raise ImageError(f"the image {name} is not built yet: pyvmm image build {name}")
    return found


def image_names() -> list[str]:
    """The names of all Linux images, in alphabetical order."""
    return sorted(entry.name for entry in _root().iterdir() if entry.joinpath(IMAGE_RECIPE_FILE).is_file())


def image_recipe(name: str) -> LinuxRecipe:
    """How the Linux image called `name` is made. Raises UsageError, which lists the names there are."""
    names = image_names()
    if name not in names:
        raise UsageError(f"there is no Linux image {name!r} (known: {', '.join(names)})")
    sources: dict[str, bytes] = {}
    for other in names:  # one may take its initramfs from another
        _collect(_root().joinpath(other), other, sources)
    _collect(_root().joinpath(agent.FOLDER), agent.FOLDER, sources)
    return linux.parse(name, sources)


def _collect(folder: Traversable, prefix: str, sources: dict[str, bytes]) -> None:
    for entry in folder.iterdir():
        path = f"{prefix}/{entry.name}"
        if entry.is_dir():
            _collect(entry, path, sources)
        else:
            sources[path] = entry.read_bytes()


@functools.cache
def _root() -> Traversable:
    from importlib.resources import files

    return files("pyvmm").joinpath("_images")
