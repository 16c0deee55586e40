"""Kernels that nobody here wrote, where a distribution packages them."""

from __future__ import annotations

import time

import pytest

from pyvmm import VM

pytestmark = pytest.mark.needs("kvm")

VGA_TEXT, ROWS, COLUMNS = 0xB8000, 25, 80


def screen(vm: VM) -> list[str]:
    """The rows of the VGA text buffer: every other byte is a character, the next one its colour."""
    cells = vm.memory.read(VGA_TEXT, ROWS * COLUMNS * 2)[::2].decode("latin-1").replace("\0", " ")
    return [cells[at : at + COLUMNS].rstrip() for at in range(0, len(cells), COLUMNS)]


@pytest.mark.needs("invaders")
def test_grub_invaders_draws_its_aliens_and_its_ship() -> None:
    """A game, multiboot 1 with the addresses in its header rather than in the ELF's; it polls keyboard and clock."""
    with VM(kernel="/boot/invaders.exec", mem="16M", timeout=60) as vm:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            rows = screen(vm)
            if any("-*-" in row for row in rows) and "/ \\" in rows[-1]:
                break
            time.sleep(0.1)
        assert any(row.count("-*-") >= 5 for row in rows), rows
        assert "/ \\" in rows[-1], rows
        assert vm.exit is None
