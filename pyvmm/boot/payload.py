"""The kernel in a bzImage, unpacked by pyvmm: a vmlinux, stripped, that is then entered like any other.

Imports image and errors; zlib, lzma, bz2, lz4 and zstandard inside the functions that need them. boot.rst
("payload_offset") names the formats and where the payload is. Its last four bytes are its length when unpacked
(arch/x86/boot/compressed/mkpiggy.c in Linux); gzip ends so of itself, to the others the build appends it.

Nothing is unpacked beyond that length, nor beyond what the header says that the kernel needs in memory.
"""

from __future__ import annotations

from struct import unpack_from

from pyvmm.boot.image import BufferImage
from pyvmm.errors import LoadError, MissingExtraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.boot.bzimage import SetupHeader
    from pyvmm.boot.image import Image

MAX_UNPACKED = 1 << 30
"""Bytes that a kernel of old, whose header has no init_size, may unpack to. The largest of today have 100 MiB."""
MAX_DICTIONARY = 1 << 29
"""Bytes that xz and lzma may use beside their output; Linux's scripts/xz_wrap.sh asks for 128 MiB at most."""
LZ4_BLOCK = 8 << 20
"""Bytes that a block unpacks to at most (LZ4 frame format 1.6.1, "Legacy frame")."""
EXTRA = "kernel"


class Corrupt(Exception):
    """The data is no such stream; the text says why."""


def unpack(image: Image, header: SetupHeader) -> BufferImage:
    """The vmlinux in the bzImage `image`, which has `header`.

    Raises LoadError where there is none, or it is in a format that is not known or not sound; MissingExtraError where
    its format takes a library that is not installed.
    """
    if header.payload is None:
        raise LoadError(image.path, "does not say where its payload is", expected="boot protocol 2.08 or newer")
    offset, length = header.payload
    data = image.read(offset, length)
    name, decompress = _format(image, data, offset)
    size = unpack_from("<I", data, length - 4)[0] if length > 4 else 0
    most = min(header.init_size or MAX_UNPACKED, MAX_UNPACKED)
    if not 0 < size <= most:
        words = f"says that its {name} payload unpacks to {size} bytes"
        raise LoadError(image.path, words, offset=offset + length - 4, expected=f"1 to {most}")
    try:
        unpacked = decompress(data, size)
    except Corrupt as error:
        raise LoadError(image.path, f"has a {name} payload that cannot be unpacked: {error}", offset=offset) from error
    if len(unpacked) != size:
        words = f"has a {name} payload that does not unpack to the {size} bytes it says"
        raise LoadError(image.path, words, offset=offset)
    return BufferImage(f"{image.path} ({name} payload)", unpacked)


def _format(image: Image, data: bytes, offset: int) -> tuple[str, Callable[[bytes, int], bytes]]:
    for magic, name, decompress in _FORMATS:
        if data.startswith(magic):
            return name, decompress
    if data.startswith(b"\x89LZO"):
        words = "has a payload compressed with lzo, which pyvmm does not unpack,"
        raise LoadError(image.path, words, offset=offset, expected="--kernel-entry bzimage: the kernel unpacks itself")
    words = f"has a payload that begins with {data[:4].hex(' ')}"
    names = ", ".join(name for _, name, _ in _FORMATS)
    raise LoadError(image.path, words, offset=offset, expected=f"one compressed with {names}")


# Each of these returns `size` bytes, or another number of them where the stream is not that long. They unpack no more
# than one byte too many, and raise Corrupt.


def _gzip(data: bytes, size: int) -> bytes:
    import zlib

    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        unpacked = stream.decompress(data, size)
        beyond = stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error as error:
        raise Corrupt(error) from error
    return _whole(unpacked + beyond, stream.eof)


def _bzip2(data: bytes, size: int) -> bytes:
    import bz2

    stream = bz2.BZ2Decompressor()
    try:
        unpacked = stream.decompress(data, size)
        beyond = b"" if stream.eof else stream.decompress(b"", 1)
    except OSError as error:
        raise Corrupt(error) from error
    return _whole(unpacked + beyond, stream.eof)


def _lzma(data: bytes, size: int) -> bytes:
    import lzma

    stream = lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=MAX_DICTIONARY)
    try:
        unpacked = stream.decompress(data, size)
        beyond = b"" if stream.eof else stream.decompress(b"", 1)
    except lzma.LZMAError as error:
        raise Corrupt(error) from error
    return _whole(unpacked + beyond, stream.eof)


def _lz4(data: bytes, size: int) -> bytes:
    try:
        import lz4.block
    except ImportError:
        raise MissingExtraError("a kernel compressed with lz4", "lz4", EXTRA) from None

    unpacked = bytearray()
    at, end = 4, len(data) - 4
    while at < end and len(unpacked) <= size:
        if at + 4 > end:
            raise Corrupt("a block's length is cut short")
        length = unpack_from("<I", data, at)[0]
        at += 4
        if length > end - at:
            raise Corrupt(f"a block of {length} bytes reaches beyond its end")
        try:
            unpacked += lz4.block.decompress(data[at : at + length], uncompressed_size=LZ4_BLOCK)
        except lz4.block.LZ4BlockError as error:
            raise Corrupt(error) from error
        at += length
    return bytes(unpacked)


def _zstd(data: bytes, size: int) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise MissingExtraError("a kernel compressed with zstd", "zstandard", EXTRA) from None

    try:
        with zstandard.ZstdDecompressor().stream_reader(data[:-4]) as reader:
            return bytes(reader.read(size + 1))
    except zstandard.ZstdError as error:
        raise Corrupt(error) from error


def _whole(unpacked: bytes, ended: bool) -> bytes:
    if not ended:
        raise Corrupt("the stream is cut short, or longer than it says")
    return unpacked


_FORMATS = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"\xfd7zXZ\0", "xz", _lzma),
    (b"\x5d\0\0", "lzma", _lzma),
    (b"\x02\x21\x4c\x18", "lz4", _lz4),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"BZh", "bzip2", _bzip2),
)
