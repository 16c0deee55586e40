"""The table of instructions that KVM's emulator refuses: each class found by its encoding, others left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.kvm.emulate import decode, refusal

REFUSED = {  # as seen in ring 0 of a 64-bit guest on Linux 6.18's kvm_pvm
    "cc": "int3", "cd 40": "int n", "f1": "int1", "9b": "fwait", "d9 e8": "x87", "df e0": "x87", "0f 77": "MMX",
    "0f ae 13": "ldmxcsr", "0f ae 1b": "ldmxcsr", "0f ae 23": "xsave", "0f ae 2b": "xsave", "0f ae 33": "xsaveopt",
    "66 0f ae 33": "clwb", "0f 01 d0": "xgetbv", "0f 01 ca": "clac", "0f 01 cb": "stac", "0f 01 f9": "rdtscp",
    "0f 01 c8": "monitor", "0f 01 c9": "mwait", "66 0f 38 82 03": "invpcid", "f3 48 0f b8 c3": "popcnt",
    "48 0f c7 0b": "cmpxchg16b", "f0 48 0f c7 0b": "cmpxchg16b", "0f c7 23": "xsavec", "0f c7 2b": "xsaves",
    "f2 0f 38 f1 c3": "CRC32", "66 0f 38 dc c1": "AES", "66 0f 3a 22 c0 00": "SSE4", "f3 0f 7e 03": "SSE",
    "66 0f ef c0": "SSE", "f2 0f 58 c1": "SSE", "c5 f8 57 c0": "VEX", "c4 e2 78 f2 c3": "BMI",
    "62 f1 7c 48 10 03": "EVEX", "0f 34": "sysenter", "0f 02 c3": "lar", "0f 03 c3": "lsl", "0f 00 e0": "verr",
    "0f 01 ee": "rdpkru", "cf": "iret", "f3 48 0f 1e ce": "rdssp", "0f 78 c0": "vmread", "66 0f 38 80 03": "invept",
}  # fmt: skip
EMULATED = (
    "90", "f3 90", "0f a2", "0f 31", "0f 32", "0f 30", "0f 01 f8", "0f 01 3b", "0f ae 03", "0f ae 3b", "0f ae e8",
    "0f ae f0", "f3 48 0f bc c3", "48 0f c7 f0", "0f c3 03", "0f 1f 03", "f3 0f 1e fa", "f4", "e6 80", "8b 03",
    "0f 00 c0", "0f 06", "0f 09", "44 0f 20 c0", "0f b1 0b", "0f 0b",
)  # fmt: skip


@pytest.mark.parametrize("code", REFUSED)
def test_refused_classes(code: str) -> None:
    found = refusal(bytes.fromhex(code) + b"\x90", 64)
    assert found is not None
    assert REFUSED[code] in found.name
    assert found.avoid


@pytest.mark.parametrize("code", EMULATED)
def test_what_the_emulator_knows_is_not_named(code: str) -> None:
    assert refusal(bytes.fromhex(code) + b"\x90", 64) is None


def test_vex_bytes_are_other_instructions_outside_64_bit_code() -> None:
    lds = bytes.fromhex("c5 03")
    assert refusal(lds, 32) is None
    assert refusal(lds, 64) is not None
    assert refusal(bytes.fromhex("c5 f8 57 c0"), 32) is not None
    assert refusal(bytes.fromhex("62 03"), 32) is not None  # bound
    assert refusal(b"\x48\xcc", 32) is None  # dec eax, not a REX prefix


@given(st.binary(max_size=20), st.sampled_from((16, 32, 64)))
def test_any_bytes_can_be_asked_about(code: bytes, bits: int) -> None:
    found = decode(code, bits)
    if found is None:
        assert refusal(code, bits) is None
    else:
        assert 0 <= found.byte <= 255 and 0 <= found.modrm <= 255


@pytest.mark.parametrize("code", ["", "f3", "66 48", "0f", "0f 38", "f2 0f 3a"])
def test_code_cut_short_is_nothing(code: str) -> None:
    assert decode(bytes.fromhex(code), 64) is None
