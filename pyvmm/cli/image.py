"""`pyvmm image`: the guests that come with pyvmm. Lists them, builds them, says where their files are.

Imports images and progress. Builds when it must; what is built stays in the cache (docs/guests.md).
"""

from __future__ import annotations

from pyvmm import images
from pyvmm.cli.progress import log

HELP = "list, build and find the guests that come with pyvmm"


def main(argv: list[str]) -> int:
    """Runs `pyvmm image argv`. Returns 0; raises PyvmmError. Paths and lists go to stdout, progress to stderr."""
    import argparse

    parser = argparse.ArgumentParser(prog="pyvmm image", description=HELP, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("list", help="name and summary of each guest", allow_abbrev=False)
    build = verbs.add_parser("build", help="build guests into the cache", allow_abbrev=False)
    build.add_argument("names", nargs="+", metavar="NAME", help="a guest's name, or `all`")
    path = verbs.add_parser("path", help="print the path of a guest's file, built if need be", allow_abbrev=False)
    path.add_argument("name", metavar="NAME")
    arguments = parser.parse_args(argv)

    if arguments.verb == "list":
        _list()
    elif arguments.verb == "build":
        _build(arguments.names)
    else:
        print(images.guest(arguments.name).path())
    return 0


def _list() -> None:
    guests = [images.guest(name) for name in images.guest_names()]
    width = max(len(guest.name) for guest in guests)
    for guest in guests:
        print(f"{guest.name:{width}}  {guest.format:12}  {guest.recipe.summary}")


def _build(names: list[str]) -> None:
    if "all" in names:
        names = images.guest_names()
    guests = [images.guest(name) for name in names]  # an unknown name fails before anything is built
    for number, guest in enumerate(guests, 1):
        log.say(f"image {number} of {len(guests)}: {guest.path()}")
