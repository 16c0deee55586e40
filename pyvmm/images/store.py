"""Keeps the Linux images in the cache: a folder each, with a manifest, there as a whole or not at all.

Imports errors and its own package. The layout, below the cache's folder:

    images/NAME/KEY/            vmlinux, bzImage, initrd.cpio, config, System.map, modules/, manifest.json
    images/NAME/current-RECIPE  the KEY of the newest image made by that recipe
    images/NAME/kernel-KEY/     what a kernel's build gave, for the next image that has the same kernel
    images/NAME/work-KEY/       an unfinished build
"""

from __future__ import annotations

import os
from contextlib import contextmanager

from pyvmm.errors import ImageError
from pyvmm.images.cache import cache_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from pyvmm.images.host import Report

MANIFEST = "manifest.json"
FORMAT = 1
DIGITS = 16
"""Hexadecimal digits of a key in the name of a folder."""
BUILDING = "building-"
"""Prefix of the folders that hold an image in the making."""
WORK = "work-"
"""Prefix of the folders that hold what a build needs on the way."""


class File:
    """A file of an image: `path` below the image's folder, `size` in bytes, `sha256` in hexadecimal."""

    __slots__ = ("path", "sha256", "size")

    def __init__(self, path: str, size: int, sha256: str) -> None:
        self.path = path
        self.size = size
        self.sha256 = sha256


class Manifest:
    """What an image is: its `name`, its `key`, the digest of the `recipe`, `made_from` for people, its files."""

    __slots__ = ("files", "key", "made_from", "name", "recipe")

    def __init__(self, name: str, key: str, recipe: str, made_from: tuple[str, ...], files: tuple[File, ...]) -> None:
        self.name = name
        self.key = key
        self.recipe = recipe
        self.made_from = made_from
        self.files = files

    def to_json(self) -> bytes:
        """As text. The last member is a digest of all the others, which shows damage."""
        import json

        members = self._members()
        return (json.dumps(members | {"digest": _digest(members)}, indent=1) + "\n").encode()

    def _members(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "name": self.name,
            "key": self.key,
            "recipe": self.recipe,
            "made_from": list(self.made_from),
            "files": [[file.path, file.size, file.sha256] for file in self.files],
        }

    @classmethod
    def from_json(cls, text: bytes, place: str) -> Manifest:
        """Reads what to_json() wrote. Raises ImageError, which begins with `place`, for anything else."""
        import json

        try:
            members = json.loads(text)
            if members["format"] != FORMAT:
                raise ImageError(f"{place}: its format is {members['format']!r} (expected {FORMAT})")
            files = tuple(File(_path(path), _count(size), _hex(sha256, 64)) for path, size, sha256 in members["files"])
            found = cls(
                name=_name(members["name"]),
                key=_hex(members["key"], 64),
                recipe=_hex(members["recipe"], 64),
                made_from=tuple(str(item) for item in members["made_from"]),
                files=files,
            )
            if members["digest"] != _digest(found._members()) or len({file.path for file in files}) != len(files):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ImageError(f"{place}: this is no image's manifest, or it is damaged") from None
        return found


def _digest(members: dict[str, Any]) -> str:
    import hashlib
    import json

    return hashlib.sha256(json.dumps(members, sort_keys=True).encode()).hexdigest()


def _path(path: Any) -> str:
    """`path` if it is one below a folder: relative, normal, without control characters."""
    if not isinstance(path, str) or not path.isprintable() or path == MANIFEST or path.startswith("/"):
        raise ValueError
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError
    return path


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _hex(value: Any, digits: int) -> str:
    if not isinstance(value, str) or len(value) != digits or value.strip("0123456789abcdef"):
        raise ValueError
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.isidentifier():
        raise ValueError
    return value


class Image:
    """A Linux image in the cache. The attributes are paths."""

    __slots__ = ("folder", "manifest")

    def __init__(self, folder: str, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def kernel(self) -> str:
        """The vmlinux; where an image has none, the bzImage."""
        return self._path("vmlinux" if self._has("vmlinux") else "bzImage")

    @property
    def bzimage(self) -> str:
        return self._path("bzImage")

    @property
    def initrd(self) -> str:
        return self._path("initrd.cpio")

    @property
    def config(self) -> str:
        """The kernel's configuration."""
        return self._path("config")

    @property
    def system_map(self) -> str | None:
        """The kernel's symbols, as `nm` prints them."""
        return self._path("System.map") if self._has("System.map") else None

    @property
    def modules(self) -> str | None:
        """The folder that belongs at /lib/modules, where the kernel has modules."""
        return self._path("modules") if any(file.path.startswith("modules/") for file in self.manifest.files) else None

    def _has(self, path: str) -> bool:
        return any(file.path == path for file in self.manifest.files)

    def _path(self, path: str) -> str:
        return os.path.join(self.folder, path)


def folder_of(name: str) -> str:
    """Where everything of the image `name` is."""
    return os.path.join(cache_folder(), "images", name)


def current(name: str, recipe: str) -> Image | None:
    """The newest image `name` that was made by the recipe with that digest."""
    try:
        with open(_pointer(name, recipe), encoding="ascii") as file:
            key = file.read().strip()
    except (OSError, ValueError):
        return None
    return find(name, key)


def find(name: str, key: str) -> Image | None:
    """The image `name` with that `key`; an incomplete one, which only a crash of the host can leave, is none."""
    folder = os.path.join(folder_of(name), key[:DIGITS])
    try:
        with open(os.path.join(folder, MANIFEST), "rb") as file:
            manifest = Manifest.from_json(file.read(), folder)
        complete = all(os.path.getsize(os.path.join(folder, file.path)) == file.size for file in manifest.files)
    except (OSError, ImageError):
        return None
    return Image(folder, manifest) if complete and manifest.key == key else None


def point_to(image: Image) -> None:
    """Make `image` the current one of its recipe."""
    pointer = _pointer(image.name, image.manifest.recipe)
    with open(f"{pointer}.new", "w", encoding="ascii") as file:
        file.write(image.manifest.key + "\n")
    os.replace(f"{pointer}.new", pointer)


def publish(name: str, key: str, recipe: str, made_from: tuple[str, ...], files: Mapping[str, str | bytes]) -> Image:
    """Makes the image `name` of `files`: each a path below its folder, and content or the path of a file.

    The caller holds the image's lock.
    """
    folder = begin(name)
    entries = []
    for path, content in files.items():
        target = os.path.join(folder, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if isinstance(content, bytes):
            with open(target, "wb") as file:
                file.write(content)
        else:
            _link(content, target)
        entries.append(File(path, os.path.getsize(target), sha256(target)))
    return finish(folder, Manifest(name, key, recipe, made_from, tuple(entries)))


def begin(name: str) -> str:
    """An empty folder for an image in the making; those that killed processes left are removed."""
    import shutil
    import tempfile

    parent = folder_of(name)
    for left in os.listdir(parent):
        if left.startswith(BUILDING):
            shutil.rmtree(os.path.join(parent, left), ignore_errors=True)
    return tempfile.mkdtemp(prefix=BUILDING, dir=parent)


def finish(folder: str, manifest: Manifest) -> Image:
    """Turns the `folder` that begin() gave, now filled, into the image that `manifest` describes."""
    import shutil

    with open(os.path.join(folder, MANIFEST), "wb") as file:
        file.write(manifest.to_json())
    os.chmod(folder, 0o755)  # mkdtemp's is for the user alone
    final = os.path.join(folder_of(manifest.name), manifest.key[:DIGITS])
    shutil.rmtree(final, ignore_errors=True)  # find() did not take it for an image
    os.rename(folder, final)
    image = Image(final, manifest)
    point_to(image)
    return image


@contextmanager
def locked(name: str, report: Report) -> Iterator[None]:
    """Holds the lock of the image `name`. Programs started meanwhile may hold it too.

    Raises ImageError, which names the folder, where the cache cannot be written.
    """
    import fcntl

    folder = folder_of(name)
    try:
        os.makedirs(folder, exist_ok=True)
        lock = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ImageError(
            f"cannot write the image cache {folder}: {error.strerror}; set PYVMM_CACHE to a folder that can be written"
        ) from error
    try:
        os.set_inheritable(lock, True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another process that is at it", 0, 0)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def sha256(path: str) -> str:
    """The file's digest in hexadecimal."""
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pointer(name: str, recipe: str) -> str:
    return os.path.join(folder_of(name), f"current-{recipe[:DIGITS]}")


def _link(path: str, target: str) -> None:
    """The same file under another name, or a copy where that cannot be."""
    import shutil

    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
