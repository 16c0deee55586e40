"""Where built images are kept, and how one gets there: whole or not at all, built once however many ask.

Imports errors. Follows the XDG base directory specification 0.8: `${XDG_CACHE_HOME:-~/.cache}`, a relative
value ignored.
"""

from __future__ import annotations

import os

from pyvmm.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_BUILDING = "building-"
"""Prefix of the folders that builds work in."""


def cache_folder() -> str:
    """The absolute path of pyvmm's cache: `${PYVMM_CACHE:-${XDG_CACHE_HOME:-~/.cache}/pyvmm}`. It need not exist.

    Raises ImageError where no variable names one and the user has no home folder.
    """
    chosen = os.environ.get("PYVMM_CACHE")
    if chosen:
        return os.path.abspath(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(_home(), ".cache")
    return os.path.join(base, "pyvmm")


def _home() -> str:
    home = os.environ.get("HOME")
    if not home:
        import pwd

        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            home = ""
    if not os.path.isabs(home):
        raise ImageError("no home folder is known to keep built images in: set PYVMM_CACHE to a folder")
    return home


def cached(kind: str, key: str, file_name: str, build: Callable[[str], None]) -> str:
    """The path of `file_name` in the cache, after building it if it is not there.

    `build(folder)` must leave `file_name` in the empty `folder`; it runs under a lock, so that several processes that
    ask at once build once. The file appears under its final name when it is complete. `key` stands for all that the
    result depends on. Raises ImageError, which names the folder, where the cache cannot be written.
    """
    folder = os.path.join(cache_folder(), kind)
    path = os.path.join(folder, key, file_name)
    if os.path.exists(path):
        return path
    try:
        os.makedirs(folder, exist_ok=True)
        lock = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        _build_locked(lock, folder, path, build)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        os.close(lock)  # and with it the lock
    return path


def _build_locked(lock: int, folder: str, path: str, build: Callable[[str], None]) -> None:
    import fcntl
    import shutil
    import tempfile

    fcntl.flock(lock, fcntl.LOCK_EX)
    if os.path.exists(path):  # somebody else built it while this process waited
        return
    for name in os.listdir(folder):  # whoever left these was killed: the lock is ours
        if name.startswith(_BUILDING):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=folder) as work:
        build(work)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.replace(os.path.join(work, os.path.basename(path)), path)


def _unwritable(folder: str, error: OSError) -> ImageError:
    return ImageError(
        f"cannot write the image cache {folder}: {error.strerror}; set PYVMM_CACHE to a folder that can be written"
    )
