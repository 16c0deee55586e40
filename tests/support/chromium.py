"""A page in headless Chromium, without a network: its DOM once scripts have run, what its console said, a picture."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

FLAGS = (
    "--headless",
    "--no-sandbox",  # the tests run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no name has an address: nothing can be fetched
    "--proxy-server=127.0.0.1:9",  # and where a number was given, nobody answers
)
LIGHT, DARK = 1, 0
"""blink's preferredColorScheme."""


def _run(*arguments: str, limit: float) -> subprocess.CompletedProcess[str]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or "chromium"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        return subprocess.run(
            [program, *FLAGS, f"--user-data-dir={profile}", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
            env={**os.environ, "HOME": profile},
        )


def dom(page: Path, *, fragment: str = "", limit: float = 100) -> tuple[str, list[str]]:
    """The page's DOM as HTML, and the lines that its console has."""
    done = _run("--virtual-time-budget=8000", "--dump-dom", page.as_uri() + fragment, limit=limit)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def picture(
    page: Path, to: Path, *, width: int = 1280, height: int = 1600, scheme: int = LIGHT, limit: float = 100
) -> bytes:
    """A screenshot in the file `to`, as PNG."""
    done = _run(
        "--virtual-time-budget=8000",
        f"--blink-settings=preferredColorScheme={scheme}",
        f"--window-size={width},{height}",
        f"--screenshot={to}",
        page.as_uri(),
        limit=limit,
    )
    assert done.returncode == 0, done.stderr
    return to.read_bytes()
