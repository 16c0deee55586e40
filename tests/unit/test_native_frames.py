"""Network's and console's data planes in C by themselves, under sanitizers: each partial send, short read, any ring."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pyvmm._native import build_rings

DRIVER = Path(__file__).parents[1] / "native" / "frames_driver.c"
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror")


def build(folder: Path, compiler: str, *options: str) -> Path:
    """The driver, which has net.c in it."""
    program = folder / "driver"
    parts = [str(build_rings.HERE / f"{part}.c") for part in ("rings", "console")]
    command = [compiler, "-std=gnu11", "-g", "-O1", *options, "-I", str(build_rings.HERE), str(DRIVER)]
    result = subprocess.run([*command, *parts, "-o", str(program)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return program


@pytest.mark.needs("gcc")
def test_the_data_planes_do_as_they_should_with_any_ring_and_back_end(tmp_path):
    result = subprocess.run(
        [build(tmp_path, "gcc", *SANITIZERS, *WARNINGS)], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "ok\n", "")


@pytest.mark.needs("clang")
def test_a_fuzzer_that_is_led_by_coverage_finds_nothing(tmp_path):
    program = build(tmp_path, "clang", *SANITIZERS, "-fsanitize=fuzzer", "-DFUZZ")
    command = [program, "-runs=4000", "-seed=1", "-max_len=20000", f"-artifact_prefix={tmp_path}/"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr[-4000:]
