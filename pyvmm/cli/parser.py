"""An argparse parser whose mistakes are told as every mistake is. May import errors; not for the way of `pyvmm run`."""

from __future__ import annotations

import argparse

from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Raises UsageError, one line, where argparse would print its own and end the process."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise UsageError(f"error: {message} ({self.prog} --help explains)")
