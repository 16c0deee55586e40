"""The C helper by itself, under AddressSanitizer and UndefinedBehaviorSanitizer, without /dev/kvm.

tests/kvm/test_kvm_helper.py is the other half.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pyvmm._native import build_kvm

DRIVER = Path(__file__).parents[1] / "native" / "kvm_helper_driver.c"
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]


def compile_driver(folder: Path, *options: str) -> Path:
    numbers = build_kvm.request_numbers(build_kvm.abi())
    program = folder / "driver"
    defines = [f"-D{name.removeprefix('KVM_')}={number}UL" for name, number in numbers.items()]
    command = ["gcc", "-std=gnu11", "-g", "-O1", *options, f"-DPYVMM_KVM_RUN={numbers['KVM_RUN']}UL", *defines]
    sources = [str(DRIVER), str(build_kvm.HERE / "kvm_helper.c")]
    include = ["-I", str(build_kvm.HERE)]
    result = subprocess.run(
        [*command, *WARNINGS, *include, *sources, "-o", str(program), "-pthread"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return program


def run_driver(program: Path, device: str) -> None:
    result = subprocess.run([str(program), device], capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stdout, result.stderr) == (0, "ok\n", "")


SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.mark.needs("gcc")
def test_without_kvm(tmp_path):
    run_driver(compile_driver(tmp_path, *SANITIZERS), "-")
