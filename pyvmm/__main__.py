"""`python -m pyvmm`: the same as the `pyvmm` command."""

import sys

from pyvmm.cli.main import main

sys.exit(main())
