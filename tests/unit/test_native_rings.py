"""The virtqueue engine in C, held to the one in Python."""

from __future__ import annotations

import re

import pytest

from pyvmm._native import build_rings
from pyvmm.virtio import spec
from pyvmm.virtio.native import ffi, lib


@pytest.fixture(scope="module")
def layout():
    return build_rings.abi()


def test_the_compiler_lays_structures_out_as_cffi_does(layout):
    """The module was compiled from the headers that `layout` was computed from."""
    names = ffi.list_types()[1]
    assert len(names) >= 5
    for name in names:
        assert ffi.sizeof(f"struct {name}") == layout.sizeof(f"struct {name}")


def test_the_stub_is_up_to_date(layout):
    assert (build_rings.HERE / "_rings.pyi").read_text() == build_rings.stub(layout)


def test_the_stub_names_what_the_module_has(layout):
    text = build_rings.stub(layout)
    assert set(re.findall(r"^    (?:def )?(pyvmm_\w+|PYVMM_\w+)[(:]", text, re.MULTILINE)) == {
        name for name in dir(lib) if name.lower().startswith("pyvmm_")
    }


def test_numbers_typed_in_c_are_those_of_the_specification():
    """What rings.c defines under a name that spec.py has."""
    text = (build_rings.HERE / "rings.c").read_text()
    numbers = dict(re.findall(r"^#define (DESC_F_\w+) (\d+)$", text, re.MULTILINE))
    assert len(numbers) == 3
    assert all(getattr(spec, name) == int(value) for name, value in numbers.items())
    assert "#define NO_INTERRUPT 1\n" in text and spec.AVAIL_F_NO_INTERRUPT == 1
    assert "#define NO_NOTIFY 1\n" in text and spec.USED_F_NO_NOTIFY == 1
    assert "(1ULL << 32)" in text and spec.CHAIN_LIMIT == 1 << 32


@pytest.mark.parametrize("part", ["rings"])
def test_the_c_files_stay_small(part):
    assert len((build_rings.HERE / f"{part}.c").read_text().splitlines()) < 500
