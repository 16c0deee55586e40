"""Unit tests pass on a machine without KVM: here, opening /dev/kvm is an error, whether or not it is there."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.support.virtiodriver import Driver

_forbidden = False


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _forbidden and event == "open" and arguments[0] == "/dev/kvm":
        raise AssertionError("a unit test opens /dev/kvm: it belongs in tests/kvm/")


sys.addaudithook(_audit)


@pytest.fixture(autouse=True)
def no_kvm() -> Iterator[None]:
    global _forbidden
    _forbidden = True
    yield
    _forbidden = False


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of modules that have the virtio driver run over each transport, but for those of one of them."""
    if getattr(metafunc.module, "Driver", None) is Driver:
        chosen = metafunc.definition.get_closest_marker("transport")
        metafunc.parametrize("transport", chosen.args if chosen else ("mmio", "pci"), indirect=True)


@pytest.fixture(autouse=True)
def transport(request: pytest.FixtureRequest) -> Iterator[str]:
    """What virtio drivers use in this test."""
    before, Driver.default = Driver.default, getattr(request, "param", Driver.default)
    yield Driver.default
    Driver.default = before
