"""What the system's C headers say: second sources for constants that were typed by hand."""

from __future__ import annotations

import subprocess
from pathlib import Path


def macros(folder: Path, header: str, names: list[str]) -> dict[str, int]:
    """The values that `header` gives to `names`, by way of the compiler, which works in `folder`."""
    lines = "\n".join(f'printf("%llu\\n", (unsigned long long)({name}));' for name in names)
    (folder / "macros.c").write_text(
        "#define _GNU_SOURCE\n#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <sys/ioctl.h>\n"
        f"#include <{header}>\nint main(void) {{ {lines} }}\n"
    )
    subprocess.run(["gcc", "-o", "macros", "macros.c"], cwd=folder, check=True, timeout=60)
    output = subprocess.run([str(folder / "macros")], check=True, capture_output=True, timeout=60).stdout
    return dict(zip(names, map(int, output.split()), strict=True))
