"""The folder of a snapshot: written so that it is there whole or not at all, and judged before anything else is done.

Imports errors. There are `state.json` and the files that it names, each with a random part in its name. A new snapshot
in an old one's place brings its own files and then renames its state over the old one: until then the old one is whole,
and from then on the new one is. Files that no state names are left-overs, which the next snapshot removes.

State is a line of text, "pyvmm-snapshot VERSION SHA256 LENGTH", and LENGTH bytes of JSON behind it. All files are
sealed when they are written: read-only, and from then on told by inode, size and time of their last change. A copy has
another inode, and is only believed when all of it has been read and has the right checksums.
"""

from __future__ import annotations

import fcntl
import os
import stat

from pyvmm.errors import LoadError, PyvmmError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAGIC = "pyvmm-snapshot"
VERSION = 1
STATE = "state.json"
LARGEST = 64 << 20
"""Bytes of state at most: 255 vCPUs have less than 4 MiB, and 4 TiB of memory's checksums 64."""
LONGEST_LINE = 256
SEALED = 0o444


class Writer:
    """A snapshot being written to the folder `path`. A context manager, which without `commit()` leaves what there was.

    One at a time: raises UsageError for a folder that is something else, PyvmmError for what the host does not do.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._suffix = os.urandom(4).hex()
        self._made = self._committed = False
        self._names: list[str] = []
        try:
            try:
                os.mkdir(path)
                self._made = True
            except FileExistsError:
                _check_ours(path)
            self.folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise PyvmmError(f"snapshot {path}: cannot be made: {error.strerror or error}") from error
        try:
            fcntl.flock(self.folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self.folder)
            raise PyvmmError(f"snapshot {path}: is being written by another program") from None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            _remove(self.folder, name)
        os.close(self.folder)
        if self._made and not self._committed:
            try:
                os.rmdir(self.path)
            except OSError:
                pass  # somebody has put something there

    def create(self, what: str) -> tuple[str, int]:
        """A new file for `what`: its name in the folder, and a descriptor. Raises OSError."""
        name = f"{what}-{self._suffix}"
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self.folder)
        self._names.append(name)
        return name, fd

    def seal(self, name: str, fd: int) -> dict[str, Any]:
        """The file is complete: have it on the disk and read-only; returns what it will be known by. Raises OSError."""
        os.fchmod(fd, SEALED)
        os.fsync(fd)
        return {"name": name, **identity(os.fstat(fd))}

    def commit(self, state: dict[str, Any]) -> None:
        """Make this the snapshot. Raises OSError, UsageError for too much state."""
        import json

        text = json.dumps(state, separators=(",", ":")).encode()
        if len(text) > LARGEST:
            raise UsageError(f"snapshot {self.path}: {len(text)} bytes of state (expected up to {LARGEST})")
        name, fd = self.create(STATE)
        try:
            data = f"{MAGIC} {VERSION} {checksum(text)} {len(text)}\n".encode() + text
            with memoryview(data) as rest:
                done = 0
                while done < len(data):
                    done += os.write(fd, rest[done:])
            self.seal(name, fd)
        finally:
            os.close(fd)
        os.rename(name, STATE, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        os.fsync(self.folder)
        named = {STATE, *self._names}
        self._names, self._committed = [], True
        for other in os.listdir(self.folder):
            if other not in named and _is_ours(other):
                _remove(self.folder, other)


def _check_ours(path: str) -> None:
    """Raise UsageError for a folder that is no snapshot: what is in it is somebody's."""
    try:
        names = os.listdir(path)
    except NotADirectoryError:
        raise UsageError(f"snapshot {path}: is there, and is no folder") from None
    strange = [name for name in names if not _is_ours(name)]
    if strange:
        raise UsageError(f"snapshot {path}: is a folder with other things in it, as {strange[0]!r}")


def _is_ours(name: str) -> bool:
    stem, dash, suffix = name.rpartition("-")
    return name == STATE or (bool(stem and dash) and len(suffix) == 8 and not set(suffix) - set("0123456789abcdef"))


def _remove(folder: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        pass


def identity(status: os.stat_result) -> dict[str, int]:
    """By what a file is known: it has not been written to since if this is the same."""
    return {"inode": status.st_ino, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


# --- Reading -------------------------------------------------------------------------------------------------------


class Folder:
    """The snapshot in the folder `path`, judged as far as its state goes. A context manager.

    state     what was saved
    checksum  of it, by which others know this snapshot
    folder    a descriptor of the folder

    Raises LoadError, which names the path and what is wrong.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.folder = -1
        try:
            self.folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fd = os.open(STATE, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self.folder)
        except OSError as error:
            self.close()
            problem = error.strerror or str(error)
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                problem = f"is no snapshot: {problem}"
            raise LoadError(path, problem, expected=f"a folder with {STATE}") from error
        try:
            self.state = self._read(fd)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(fd)

    def _read(self, fd: int) -> dict[str, Any]:
        status = os.fstat(fd)
        name = os.path.join(self.path, STATE)
        if not stat.S_ISREG(status.st_mode):
            raise LoadError(name, "is no file")
        if status.st_size > LARGEST + LONGEST_LINE:
            raise LoadError(name, f"has {status.st_size} bytes", expected=f"up to {LARGEST}")
        with open(fd, "rb", closefd=False) as file:
            data = file.read(LARGEST + LONGEST_LINE)
        state = parse(data, name)
        self.checksum = data[:LONGEST_LINE].split(b" ")[2].decode()
        return state

    def open(self, known: Any) -> tuple[int, bool]:
        """A descriptor of the file that `seal()` described so, and whether it is that file and not a copy of it.

        Raises LoadError.
        """
        if type(known) is not dict or type(name := known.get("name")) is not str or not _is_ours(name):
            raise LoadError(self.path, "its state names no file that a snapshot has")
        path = os.path.join(self.path, name)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=self.folder)
        except OSError as error:
            raise LoadError(path, error.strerror or str(error)) from error
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != known.get("size"):
            os.close(fd)
            raise LoadError(path, f"has {status.st_size} bytes", expected=f"a file of {known.get('size')}")
        return fd, identity(status) == {key: known.get(key) for key in ("inode", "size", "mtime_ns")}

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """A second call does nothing."""
        fd, self.folder = self.folder, -1
        if fd >= 0:
            os.close(fd)


def parse(data: bytes, name: str) -> dict[str, Any]:
    """The state in the contents of the file `name`. Raises LoadError."""
    if not data:
        raise LoadError(name, "is empty", expected="a snapshot's state")
    line, newline, text = data[:LONGEST_LINE].partition(b"\n")
    words = line.decode("ascii", "replace").split(" ")
    if words[0] != MAGIC:
        raise LoadError(name, "is no snapshot's state", offset=0, expected=MAGIC)
    if len(words) > 1 and words[1].isdecimal() and int(words[1][:9]) > VERSION:
        raise LoadError(name, f"is of version {words[1]}, from a later pyvmm", expected=f"up to {VERSION}")
    if not newline or len(words) != 4 or words[1] != str(VERSION) or not words[3].isdecimal():
        raise LoadError(name, "has a damaged first line", offset=0)
    text, length = data[len(line) + 1 :], int(words[3][:18])
    if length > LARGEST:
        raise LoadError(name, f"has {length} bytes of state", expected=f"up to {LARGEST}")
    if len(text) != length:
        raise LoadError(name, f"ends after {len(text)} bytes of state", expected=str(length))
    if checksum(text) != words[2]:
        raise LoadError(name, "has a wrong checksum: it is damaged")
    try:
        state = decode(text.decode())
    except (ValueError, RecursionError) as error:
        raise LoadError(name, f"is no JSON: {error}") from None
    if type(state) is not dict:
        raise LoadError(name, "is no object")
    return state


def checksum(data: bytes) -> str:
    """The SHA-256 of something short, by the interpreter's own code: it would take longer to load OpenSSL's."""
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]  # CPython 3.11
    except ImportError:
        try:
            from _sha2 import sha256  # type: ignore[import-not-found]  # later ones
        except ImportError:
            from hashlib import sha256
    return str(sha256(data).hexdigest())


def decode(text: str) -> Any:
    """`text` as JSON, by the scanner inside json, which without the regular expressions around it is there at once.

    There may be no blanks but inside of values, as nobody writes any. Raises ValueError, RecursionError.
    """
    try:
        from _json import make_scanner
    except ImportError:
        import json

        return json.loads(text)
    try:
        value, end = make_scanner(_Plain())(text, 0)  # type: ignore[arg-type]
    except StopIteration:
        raise ValueError("nothing there") from None
    if end != len(text):
        raise ValueError(f"it ends at character {end} of {len(text)}")
    return value


class _Plain:
    """How the scanner makes objects: plain dicts, floats and ints. Infinities and their like are no JSON."""

    __slots__ = ()
    strict = True
    object_hook = object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name: str) -> float:
        raise ValueError(f"{name} is no number")
