"""`pyvmm net`: pulls and plugs the network cables of a running VM. Imports control's client."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

HELP = "pull or plug a network cable of a running VM"


def main(argv: list[str]) -> int:
    """Runs `pyvmm net argv`. Returns 0; raises PyvmmError."""
    from pyvmm.control.client import Client

    arguments = _parser().parse_args(argv)
    with Client(arguments.name) as client:
        client.ask("net-link", up=arguments.state == "up", device=arguments.device)
    return 0


def _parser() -> argparse.ArgumentParser:
    from pyvmm.cli.parser import Parser

    parser = Parser(prog="pyvmm net", description=HELP, allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help="what the VM is called (pyvmm run --name)")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    text = "while a link is down, frames are dropped both ways"
    link = verbs.add_parser("link", help=text, description=text, allow_abbrev=False)
    link.add_argument("state", choices=("up", "down"))
    link.add_argument("--device", default="net0", metavar="NET", help="which interface (default: net0)")
    return parser
