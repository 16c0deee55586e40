"""What the images take from the host: programs, their versions, and Debian packages.

Imports errors. Everything runs with an environment of our own, so that the user's settings change neither messages
nor results, and nothing needs root.
"""

from __future__ import annotations

import functools
import os

from pyvmm.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Report = Callable[[str, int, int], None]
    """Told what is being done, and how much of how much is done (0 of 0 where that is not known)."""

KEPT_VARIABLES = ("PATH", "HOME", "TMPDIR", "http_proxy", "https_proxy", "no_proxy", "APT_CONFIG")
SECONDS = 600
"""No single program but make may take longer; one that does is killed."""


def environment() -> dict[str, str]:
    """The few variables that a program needs, and the C locale."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def require(packages: dict[str, str], purpose: str, otherwise: str = "") -> None:
    """Raises ImageError, which names all at once, where programs are missing.

    `packages` maps each program to the Debian package that has it; `otherwise` says what else would do.
    """
    import shutil

    missing = [program for program in packages if shutil.which(program) is None]
    if missing:
        names = " ".join(dict.fromkeys(packages[program] for program in missing))
        hint = f"; {otherwise}" if otherwise else ""
        raise ImageError(
            f"{purpose} needs {', '.join(missing)}, not found here (Debian: apt-get install {names}{hint})"
        )


def run(command: list[str], purpose: str, *, folder: str = ".", stdin: bytes | None = None) -> str:
    """What `command` writes to its standard output. Raises ImageError with the first line of its complaint."""
    import subprocess

    try:
        result = subprocess.run(
            command, cwd=folder, env=environment(), input=stdin or b"", capture_output=True, timeout=SECONDS
        )
    except FileNotFoundError:
        raise ImageError(f"{purpose}: {command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise ImageError(f"{purpose}: {command[0]} took more than {SECONDS} s") from None
    output, errors = (text.decode(errors="replace") for text in (result.stdout, result.stderr))
    if result.returncode:
        lines = errors.splitlines() or output.splitlines()
        complaint = next((line for line in lines if not line.startswith("W: ")), f"status {result.returncode}")
        raise ImageError(f"{purpose}: {command[0]}: {complaint.strip()}")
    return output


@functools.cache
def version(program: str) -> str:
    """The first line of what `program --version` says."""
    return run([program, "--version"], f"the version of {program}").partition("\n")[0].strip()


APT = {"apt-get": "apt", "apt-cache": "apt", "dpkg-deb": "dpkg"}


@functools.cache
def candidate(package: str) -> str:
    """The version of `package` that apt would install. Raises ImageError where apt knows none, with what to do."""
    for line in run(["apt-cache", "policy", package], f"looking for the package {package}").splitlines():
        name, _, value = line.strip().partition(": ")
        if name == "Candidate" and value != "(none)":
            return value
    raise ImageError(
        f"apt knows no package {package}: its lists may be empty (apt-get update, as root), or this is "
        "a system without that package"
    )


def dependency(package: str, prefix: str) -> str:
    """The first package with a name that begins with `prefix` among those `package` depends on."""
    for wanted in _field(package, "Depends").split(","):
        name = wanted.split()[0]
        if name.startswith(prefix):
            return name
    raise ImageError(f"{package} {candidate(package)} depends on no {prefix}*")


def download(package: str, folder: str, report: Report) -> str:
    """The path of the package's .deb, downloaded to `folder` and checked by apt; goes on where it was interrupted."""
    import subprocess
    import tempfile

    purpose = f"downloading {package}"
    os.makedirs(folder, exist_ok=True)
    total = int(_field(package, "Size"))
    prefix = f"{package}_{candidate(package).replace(':', '%3a')}_"
    command = ["apt-get", "-q", "download", f"{package}={candidate(package)}"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            while process.poll() is None:
                report(f"{purpose} ({total >> 20} MiB)", sum(map(_size, _named(folder, prefix))), total)
                try:
                    process.wait(0.5)
                except subprocess.TimeoutExpired:
                    pass
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        errors = [line for line in log.read().decode(errors="replace").splitlines() if line.startswith("E: ")]
    found = _named(folder, prefix)
    if process.returncode or len(found) != 1:
        raise ImageError(f"{purpose}: {errors[0] if errors else f'apt-get ended with {process.returncode}'}")
    return found[0]


def _field(package: str, wanted: str) -> str:
    shown = run(["apt-cache", "show", f"{package}={candidate(package)}"], f"looking at the package {package}")
    for line in shown.splitlines():
        name, _, value = line.partition(": ")
        if name == wanted:
            return value
    raise ImageError(f"apt says nothing about {wanted} of {package}")


def _named(folder: str, prefix: str) -> list[str]:
    return [os.path.join(folder, name) for name in os.listdir(folder) if name.startswith(prefix)]


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0


def unpack(package: str, folder: str) -> None:
    """Lays out the files of the .deb at `package` in `folder`, without running any of its scripts."""
    os.makedirs(folder, exist_ok=True)
    run(["dpkg-deb", "--extract", package, folder], f"unpacking {package}")


def describe(package: str) -> tuple[str, str]:
    """Name and version of the .deb at the path `package`."""
    shown = run(["dpkg-deb", "--show", "--showformat=${Package} ${Version}", package], f"reading {package}")
    name, _, found = shown.strip().partition(" ")
    return name, found


def digest(parts: Iterable[str | bytes]) -> str:
    """SHA-256 of `parts`, each with its length, in hexadecimal."""
    import hashlib

    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(b"%d:" % len(data) + data)
    return total.hexdigest()
