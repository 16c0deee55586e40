"""Carries a Linux image from one machine to another, as one file.

Imports errors and its own package. The file is a POSIX.1-1988 (ustar) archive without compression: manifest.json
first, then the image's files in the manifest's order. Nothing of it is written anywhere before all of it has been
read and judged.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from contextlib import contextmanager

from pyvmm.errors import ImageError
from pyvmm.images import store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

    from pyvmm.images.host import Report
    from pyvmm.images.store import File, Image, Manifest

MANIFEST_MAX = 16 << 20
"""Bytes of a manifest; one of Debian's kernel with all its modules has a fiftieth of it."""
IMAGE_MAX = 4 << 30
"""Bytes of all files of an image."""
CHUNK = 1 << 20


def write(image: Image, path: str) -> None:
    """Write `image` to the file `path`, which appears when it is complete. Raises ImageError.

    The same image gives the same bytes.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(os.path.abspath(path)), delete=False) as file:
            try:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                    manifest = image.manifest.to_json()
                    archive.addfile(_member(store.MANIFEST, len(manifest)), io.BytesIO(manifest))
                    for entry in image.manifest.files:
                        with open(os.path.join(image.folder, entry.path), "rb") as content:
                            archive.addfile(_member(entry.path, entry.size), content)
                os.chmod(file.name, 0o644)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except (OSError, ValueError) as error:  # ValueError: a path that ustar cannot hold
        raise ImageError(f"{path}: {error}") from error


def _member(path: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)  # time 0, owners root, mode 0644
    member.size = size
    return member


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


def read(path: str, recipes: dict[str, str], report: Report) -> Image:
    """Put the image that the file `path` holds into the cache. Raises ImageError for anything that isn't one.

    `recipes` maps the names of images that pyvmm knows to the digests of their recipes; no other image is taken.
    """
    manifest = _judge(path, recipes)
    with store.locked(manifest.name, report):
        image = store.find(manifest.name, manifest.key)
        if image is None:
            folder = store.begin(manifest.name)
            for entry, content in _contents(path, manifest):
                target = os.path.join(folder, entry.path)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                with open(target, "wb") as file:
                    for chunk in content:
                        file.write(chunk)
            image = store.finish(folder, manifest)
        store.point_to(image)
        return image


def _judge(path: str, recipes: dict[str, str]) -> Manifest:
    """The manifest of the archive at `path`, if all of it is as it should be."""
    manifest = _manifest(path)
    if manifest.name not in recipes:
        raise ImageError(f"{path}: it holds the image {manifest.name!r} (expected one of {', '.join(recipes)})")
    if manifest.recipe != recipes[manifest.name]:
        raise ImageError(f"{path}: its image {manifest.name} was made by another version of pyvmm, build it anew")
    if sum(entry.size for entry in manifest.files) > IMAGE_MAX:
        raise ImageError(f"{path}: its files are larger than an image may be ({IMAGE_MAX >> 30} GiB)")
    for _, content in _contents(path, manifest):
        for _chunk in content:
            pass
    return manifest


def _manifest(path: str) -> Manifest:
    with _opened(path) as archive:
        member = archive.next()
        if member is None or member.name != store.MANIFEST or not _is_plain(member) or member.size > MANIFEST_MAX:
            raise ImageError(f"{path}: it does not begin with {store.MANIFEST} (expected what `image export` writes)")
        content = archive.extractfile(member)
        assert content is not None  # a regular file has content
        return store.Manifest.from_json(content.read(), path)


def _contents(path: str, manifest: Manifest) -> Iterator[tuple[File, Iterator[bytes]]]:
    """Each file of the archive with its content, which must be read before the next is asked for.

    Raises ImageError, at the latest behind the last of its content, where a file is not as the manifest says.
    """
    with _opened(path) as archive:
        archive.next()
        for entry in manifest.files:
            member = archive.next()
            if member is None or member.name != entry.path or not _is_plain(member) or member.size != entry.size:
                raise ImageError(f"{path}: {entry.path} is not where it should be, or of another size")
            content = archive.extractfile(member)
            assert content is not None
            yield entry, _checked(path, entry, content)
        if archive.next() is not None:
            raise ImageError(f"{path}: it holds more than the manifest says")


def _checked(path: str, entry: File, content: IO[bytes]) -> Iterator[bytes]:
    digest = hashlib.sha256()
    with _explained(path):
        while chunk := content.read(CHUNK):
            digest.update(chunk)
            yield chunk
    if digest.hexdigest() != entry.sha256:
        raise ImageError(f"{path}: {entry.path} is damaged: its SHA-256 is {digest.hexdigest()}, not {entry.sha256}")


@contextmanager
def _opened(path: str) -> Iterator[tarfile.TarFile]:
    if os.path.exists(path) and not os.path.isfile(path):  # a FIFO would keep us waiting
        raise ImageError(f"{path} is no regular file")
    with _explained(path), tarfile.open(path, mode="r:") as archive:
        yield archive


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except tarfile.TarError as error:
        raise ImageError(f"{path}: {error} (expected what `image export` writes)") from error
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from error
