"""`python -m pyvmm`: the same as the `pyvmm` command."""

import sys

try:
    from pyvmm.cli.main import process
except KeyboardInterrupt:  # so early that nobody catches signals yet
    sys.exit(130)

process()
