"""`pyvmm disk`: makes a disk of a running VM larger or smaller. Imports control's client and config's sizes."""

from __future__ import annotations

from pyvmm.config import format_size, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

HELP = "resize a disk of a running VM"


def main(argv: list[str]) -> int:
    """Runs `pyvmm disk argv`. Returns 0; raises PyvmmError."""
    from pyvmm.control.client import Client

    arguments = _parser().parse_args(argv)
    wanted: dict[str, Any] = {"device": arguments.device, "shrink": arguments.shrink}
    if arguments.size is not None:
        wanted["size"] = parse_size(arguments.size)
    with Client(arguments.name) as client:
        print(format_size(client.ask("disk-resize", **wanted)["size"]))
    return 0


def _parser() -> argparse.ArgumentParser:
    from pyvmm.cli.parser import Parser

    parser = Parser(prog="pyvmm disk", description=HELP, allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help="what the VM is called (pyvmm run --name)")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    text = "make the disk SIZE large, or without SIZE as large as its image has become; prints its size"
    resize = verbs.add_parser("resize", help=text, description=text, allow_abbrev=False)
    resize.add_argument("device", metavar="DISK", help="which disk: blk0, blk1, ...")
    resize.add_argument("size", metavar="SIZE", nargs="?", help="1G, 512M, ...; a bare number is MiB")
    resize.add_argument("--shrink", action="store_true", help="cut off what lies beyond SIZE")
    return parser
