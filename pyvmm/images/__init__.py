"""The guests that come with pyvmm, built when they are first asked for.

Imports errors and its own package. Sources are package data (`pyvmm/_images`; guest-images/ in the repository), read
through importlib.resources; what is built goes to the cache, never to where pyvmm is installed.

    from pyvmm.images import guest
    guest("hello64").path()      # '/home/me/.cache/pyvmm/guests/1f0c.../hello64.elf'
"""

from __future__ import annotations

import functools

from pyvmm.errors import UsageError
from pyvmm.images import build, cache
from pyvmm.images.recipe import ELF, Expect, Recipe, Run, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["Expect", "Guest", "Recipe", "Run", "guest", "guest_names"]

RECIPE_FILE = "guest.toml"
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
        output = self.name + build.SUFFIX[self.recipe.output]
        files = self.files()
        return cache.cached(
            "guests",
            build.key(self.recipe, files, output),
            output,
            lambda folder: build.build(self.recipe, files.items(), output, folder),
        )

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


@functools.cache
def _root() -> Traversable:
    from importlib.resources import files

    return files("pyvmm").joinpath("_images")
