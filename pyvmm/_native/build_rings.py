"""Builds the extension module `pyvmm._native._rings`; setuptools runs it through `cffi_modules` in setup.py.

Imports cffi, which only a build needs, and build_common by path; nothing of pyvmm. Run as a program it writes the
module's type stub, _rings.pyi, to stdout. The headers of PARTS are both compiled and, without their preprocessor lines,
the cdef: `#define NAME number` is the only one that cffi takes.
"""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

from cffi import FFI

MODULE = "pyvmm._native._rings"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
COMMON = SimpleNamespace(**runpy.run_path(str(HERE / "build_common.py")))

PARTS = ("rings", "block", "net", "console")
"""The engine and the data planes: for each a header and a C file, in the order in which they need one another."""

IOVEC = "struct iovec { void *iov_base; size_t iov_len; };\n"
"""<sys/uio.h>, which cffi does not read."""

NUMBER = re.compile(r"^#define (\w+) \d+\b.*$", re.MULTILINE)


def declarations() -> str:
    """What the headers declare, as cffi reads it."""
    return IOVEC + "".join(COMMON.declarations(HERE / f"{part}.h") for part in PARTS)


def abi() -> FFI:
    """The structures, laid out by cffi."""
    ffi = FFI()
    ffi.cdef(declarations())
    return ffi


def ffi_builder() -> FFI:
    """What setuptools builds."""
    builder = abi()
    builder.set_source(
        MODULE,
        "".join(f'#include "{part}.h"\n' for part in PARTS),
        sources=[str((HERE / f"{part}.c").relative_to(ROOT)) for part in PARTS],
        depends=[str(HERE / f"{part}.h") for part in PARTS],
        include_dirs=[str(HERE)],
        extra_compile_args=COMMON.compile_args(),
    )
    return builder


STUB_DOCSTRING = """\
Types of the compiled module `_rings`. Not to be edited: build_rings.py writes it from the headers.

The headers say what each function does and what the fields of a structure, its attributes, mean.
"""


def stub(ffi: FFI) -> str:
    """The text of _rings.pyi."""
    text = declarations()
    return str(COMMON.stub(STUB_DOCSTRING, text, NUMBER.findall(text), ffi))


if __name__ == "__main__":
    sys.stdout.write(stub(abi()))
elif __name__ == "__cffi__":
    COMMON.check_machine()
    ffibuilder = ffi_builder()
