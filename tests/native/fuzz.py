"""`make fuzz-native`: libFuzzer on the virtqueue engine and the block device's data plane in C (rings_driver.c).

Needs clang with its libFuzzer, and gcc for what writes the first inputs. An input that makes it fail stays in the
folder, and is run again by the program there with the input's path as its argument.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from pyvmm._native import build_rings

DRIVER = Path(__file__).with_name("rings_driver.c")
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror")
HOST = ("-Dpreadv=driver_preadv", "-Dpwritev=driver_pwritev")
"""The driver's own, which move less than they are asked to."""
LONGEST = 6160
"""Bytes of an input: all of the memory of rings_driver.c."""


def compiled(compiler: str, program: Path, *options: str) -> list[str]:
    """The command that compiles the driver with the C files."""
    sources = [str(DRIVER), *(str(build_rings.HERE / name) for name in ("rings.c", "block.c"))]
    command = [compiler, "-std=gnu11", "-g", "-O1", *WARNINGS, *HOST, *options]
    return [*command, "-I", str(build_rings.HERE), *sources, "-o", str(program), "-pthread"]


def main(arguments: list[str]) -> None:
    """Raises CalledProcessError where something does not compile, SystemExit where the fuzzer finds something."""
    parser = argparse.ArgumentParser(prog="python -m tests.native.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=0, help="how long (default: until interrupted)")
    parser.add_argument("--folder", type=Path, help="where inputs are kept (default: a temporary one)")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="pyvmm-fuzz-"))
    inputs = folder / "inputs"
    inputs.mkdir(exist_ok=True, parents=True)
    subprocess.run(compiled("gcc", folder / "driver"), check=True)
    subprocess.run([folder / "driver", "seeds", inputs], check=True, stdout=subprocess.DEVNULL)
    sanitized = ("-DFUZZER", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
    subprocess.run(compiled("clang", folder / "fuzzer", *sanitized), check=True)
    limits = [f"-max_len={LONGEST}", f"-max_total_time={options.seconds}", f"-artifact_prefix={folder}/"]
    done = subprocess.run([folder / "fuzzer", *limits, inputs])
    if done.returncode:
        sys.exit(f"the input is in {folder}")


if __name__ == "__main__":
    main(sys.argv[1:])
