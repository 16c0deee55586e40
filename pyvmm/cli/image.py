"""`pyvmm image`: what comes with pyvmm to be run. Lists it, builds it, says where its files are, carries it elsewhere.

Imports images and progress. What is built stays in the cache (docs/guests.md, docs/images.md). Paths, keys and lists go
to stdout, progress to stderr.
"""

from __future__ import annotations

import os
import time

from pyvmm import images
from pyvmm.cli.progress import STDERR, log, write_all
from pyvmm.errors import UsageError
from pyvmm.images import archive, build, builder
from pyvmm.images.linux import SourceKernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

HELP = "list, build and find the guests and Linux images that come with pyvmm"
FILES = ("kernel", "bzimage", "initrd", "config")
REDRAW_SECONDS = 0.1


def main(argv: list[str]) -> int:
    """Runs `pyvmm image argv`. Returns 0; raises PyvmmError."""
    arguments = _parser().parse_args(argv)
    if arguments.verb == "list":
        _list()
    elif arguments.verb == "build":
        _build(arguments)
    elif arguments.verb == "path":
        print(_path(arguments.name, arguments.file))
    elif arguments.verb == "key":
        print(_key(arguments))
    elif arguments.verb == "export":
        archive.write(images.image(arguments.name), arguments.file)
    else:
        recipes = {name: images.image_recipe(name).digest() for name in images.image_names()}
        progress = Progress("import")
        log.say(f"image {archive.read(arguments.file, recipes, progress).name} is there")
    return 0


def _parser() -> argparse.ArgumentParser:
    from pyvmm.cli.parser import Parser

    parser = Parser(prog="pyvmm image", description=HELP, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(verb: str, text: str) -> argparse.ArgumentParser:
        return verbs.add_parser(verb, help=text, description=text, allow_abbrev=False)

    add("list", "name and summary of each guest and each Linux image")
    making = add("build", "build guests and Linux images into the cache")
    making.add_argument("names", nargs="+", metavar="NAME", help="a name, `guests` for all small ones, or `all`")
    making.add_argument(
        "--jobs", "-j", type=int, default=0, metavar="N", help="compile N files at once (default: CPUs)"
    )
    path = add("path", "print the path of a file; a small guest is built if need be")
    path.add_argument("name", metavar="NAME")
    path.add_argument("file", nargs="?", choices=FILES, default="kernel", help="which file (default: kernel)")
    key = add("key", "print what names all that an image is built from, for the caches of CI systems")
    key.add_argument("name", nargs="?", default="tiny", metavar="NAME", help="default: tiny")
    for verb in (making, key):
        verb.add_argument("--kernel-source", metavar="PATH", help="a Linux tree, tarball or .deb instead of Debian's")
        verb.add_argument("--busybox", metavar="FILE", help="a static busybox instead of Debian's")
    export = add("export", "write a Linux image to one file")
    export.add_argument("name", metavar="NAME")
    export.add_argument("file", metavar="FILE")
    add("import", "put a Linux image from a file into the cache").add_argument("file", metavar="FILE")
    return parser


def _list() -> None:
    guests = [images.guest(name) for name in images.guest_names()]
    recipes = [images.image_recipe(name) for name in images.image_names()]
    rows = [(guest.name, guest.format, guest.recipe.summary) for guest in guests]
    rows += [(recipe.name, "Linux", recipe.summary) for recipe in recipes]
    width = max(len(name) for name, _, _ in rows)
    for name, kind, summary in rows:
        print(f"{name:{width}}  {kind:12}  {summary}")


def _build(arguments: argparse.Namespace) -> None:
    names = arguments.names
    if "all" in names:
        names = images.guest_names() + images.image_names()
    elif "guests" in names:
        names = images.guest_names() + [name for name in names if name != "guests"]
    if arguments.jobs < 0:
        raise UsageError(f"--jobs {arguments.jobs}: expected a count")
    jobs = arguments.jobs or len(os.sched_getaffinity(0))
    inputs = _inputs(arguments)
    known = images.image_names()
    guests = {
        name: images.guest(name) for name in names if name not in known
    }  # unknown: fails before building anything
    for number, name in enumerate(names, 1):
        if name in guests:
            path = guests[name].path()
        else:
            path = _build_image(name, inputs, jobs)
        log.say(f"image {number} of {len(names)}: {path}")


def _build_image(name: str, inputs: builder.Inputs, jobs: int) -> str:
    recipe = images.image_recipe(name)
    minutes = f"{recipe.kernel.minutes:.0f} minutes on two cores" if isinstance(recipe.kernel, SourceKernel) else ""
    progress = Progress(name, minutes)
    try:
        return builder.build(recipe, inputs, jobs, progress).kernel
    finally:
        progress.end()


def _path(name: str, file: str) -> str:
    if name not in images.image_names():
        if file != "kernel":
            raise UsageError(f"{name} is a small guest and has no {file}")
        return images.guest(name).path()
    image = images.image(name)
    return {"kernel": image.kernel, "bzimage": image.bzimage, "initrd": image.initrd, "config": image.config}[file]


def _key(arguments: argparse.Namespace) -> str:
    if arguments.name not in images.image_names():
        guest = images.guest(arguments.name)
        return build.key(guest.recipe, guest.files(), guest.output)
    recipe = images.image_recipe(arguments.name)
    return builder.key(recipe, builder.made_from(recipe, _inputs(arguments)))


def _inputs(arguments: argparse.Namespace) -> builder.Inputs:
    return builder.Inputs(arguments.kernel_source, arguments.busybox)


class Progress:
    """Shows what a build is doing: one line that is drawn over on a terminal, a line for each step elsewhere.

    `expected` is said once, with the first step that can take minutes.
    """

    def __init__(self, name: str, expected: str = "") -> None:
        self._name = name
        self._expected = expected
        self._terminal = os.isatty(STDERR)
        self._text = ""
        self._since = self._drawn = 0.0
        self._first = 0

    def __call__(self, text: str, done: int, total: int) -> None:
        now = time.monotonic()
        if text != self._text:
            self._text, self._since, self._first = text, now, done
            if not self._terminal:
                log.say(f"{self._name}: {text}{f', {self._expected}' if total and self._expected else ''}")
        elif now - self._drawn < REDRAW_SECONDS:
            return
        if self._terminal:
            self._drawn = now
            self._draw(f"pyvmm: {self._name}: {text}{self._how_far(now, done, total)}")

    def end(self) -> None:
        """Take the line away."""
        if self._terminal and self._text:
            self._draw("")

    def _how_far(self, now: float, done: int, total: int) -> str:
        if not total:
            return ""
        percent = f", {100 * done // total} %"
        passed = now - self._since
        if done - self._first < total // 20:  # too early to tell
            return f"{percent}, {self._expected}" if self._expected else percent
        left = passed * (total - done) / (done - self._first)
        return f"{percent}, {int(left) // 60}:{int(left) % 60:02} left"

    def _draw(self, line: str) -> None:
        try:
            columns = os.get_terminal_size(STDERR).columns or 80  # a serial line knows no size
            write_all(STDERR, f"\r{line[: columns - 1]}\x1b[K".encode())
        except OSError:
            self._terminal = False
