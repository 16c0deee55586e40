"""The tiny Linux from `pyvmm run` to power-off, by every way into it: the traced boot, and four more two at a time.

They load both cores of a small machine for half a minute, so they run alone, after the other tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.support.linux import LIMIT, MEMORY, Boot, boots, image

pytestmark = [
    pytest.mark.needs("kvm", "tiny-image"),
    pytest.mark.serial,
    pytest.mark.timeout(4 * LIMIT),
]

Variant = tuple[tuple[object, ...], str]


def variants() -> dict[str, tuple[Variant, int]]:
    """(arguments, words of --append) and CPUs, by name."""
    common = ("--initrd", image("initrd"), "--mem", f"{MEMORY}M")
    return {
        "vmlinux": (((image("kernel"), *common), ""), 1),
        "bzimage": (((image("bzimage"), *common), ""), 1),
        "payload without acpi": (((image("bzimage"), *common, "--kernel-entry", "payload"), "acpi=off"), 1),
        "pvh": (((image("kernel"), *common, "--kernel-format", "pvh", "--cpus", "2"), ""), 2),
        "2 cpus without acpi": (((image("kernel"), *common, "--cpus", "2"), "acpi=off"), 2),
    }


NAMES = ("vmlinux", "bzimage", "payload without acpi", "pvh", "2 cpus without acpi")


@pytest.fixture(scope="module")
def booted(traced_boot: SimpleNamespace) -> Iterator[dict[str, Boot]]:
    """By name. The first is the one that others look at too, with a disk and random numbers on PCI."""
    found = {name: variant for name, (variant, _) in variants().items()}
    done = {NAMES[0]: traced_boot.boot}
    for pair in (NAMES[1:3], NAMES[3:5]):
        done.update(zip(pair, boots(*(found[name] for name in pair)), strict=True))
    yield done


@pytest.mark.parametrize("name", NAMES)
def test_it_greets_with_all_it_was_given_and_powers_off(booted, name):
    assert booted[name].is_well(MEMORY, variants()[name][1])
    assert "sleep type" in booted[name].report["detail"] or "switched" in booted[name].report["detail"]


@pytest.mark.parametrize("name", NAMES)
def test_the_kernel_complains_of_nothing(booted, name):
    bad = re.compile(r"warning|\berror|bug:|fail|invalid|unable|cannot|could not", re.IGNORECASE)
    assert [line for line in booted[name].console.splitlines() if bad.search(line)] == []
    assert booted[name].errors == ""


@pytest.mark.parametrize("name", ["vmlinux", "bzimage", "pvh"])
def test_acpi_tables_are_found_and_used(booted, name):
    console = booted[name].console
    for signature in ("RSDP", "XSDT", "FACP", "APIC", "DSDT"):
        assert re.search(rf"ACPI: {signature} 0x", console), signature
    assert "ACPI: Interpreter enabled" in console
    assert "ACPI: Using ACPI (MADT) for SMP configuration information" in console
    assert "Power Button" in console


@pytest.mark.parametrize("name", ["payload without acpi", "2 cpus without acpi"])
def test_without_acpi_the_mp_table_is_used(booted, name):
    console = booted[name].console
    assert "found SMP MP-table at [mem 0x0009fc00" in console
    assert "Intel MultiProcessor Specification v1.4" in console
    assert "ACPI: Interpreter enabled" not in console


@pytest.mark.parametrize("name", NAMES)
def test_it_has_seen_the_devices(booted, name):
    console = booted[name].console
    assert "ttyS0 at I/O 0x3f8 (irq = 4, base_baud = 115200) is a 16550A" in console
    assert "rtc_cmos" in console


@pytest.mark.soak
@pytest.mark.timeout(50 * LIMIT)
def test_fifty_boots_in_a_row_half_of_them_two_at_a_time():
    ways = list(variants().values())
    for number in range(26):
        variant, cpus = ways[number % len(ways)]
        assert boots(variant)[0].is_well(MEMORY, cpus), number
    for number in range(12):
        pair = [ways[number % len(ways)], ways[(number + 1) % len(ways)]]
        for done, (_, cpus) in zip(boots(*(variant for variant, _ in pair)), pair, strict=True):
            assert done.is_well(MEMORY, cpus), number
