"""VMs by the reference paths: every exit and every request to Python (`pytest --plain`).

Run as a program it is `pyvmm` with these defaults: `python -m tests.support.plain run ...`.
"""

from __future__ import annotations

from pyvmm.config import VmConfig

VARIABLE = "PYVMM_TESTS_PLAIN"
"""Set while a test session, and the commands that it starts, are to take these paths."""

PLAIN = {"exits": "plain", "datapath": "python"}


def apply() -> None:
    """Change what a VM takes where nobody says otherwise."""
    defaults = VmConfig.__init__.__kwdefaults__
    assert defaults is not None and defaults.keys() >= PLAIN.keys()
    defaults.update(PLAIN)


if __name__ == "__main__":
    from pyvmm.cli.main import process

    apply()
    process()
