"""The C helper under sanitizers, with a vCPU that it runs and kicks."""

from __future__ import annotations

import pytest

from tests.unit.test_native_helper import SANITIZERS, compile_driver, run_driver

pytestmark = pytest.mark.needs("gcc", "kvm")


def test_with_kvm(tmp_path):
    run_driver(compile_driver(tmp_path, *SANITIZERS), "/dev/kvm")
