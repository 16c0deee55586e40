"""Unit tests pass on a machine without KVM: here, opening /dev/kvm is an error, whether or not it is there."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

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
