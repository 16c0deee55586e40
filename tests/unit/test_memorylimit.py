"""The limits of control groups, of either version, as the files of one say them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.cli.memorylimit import memory_limit

NONE_IN_V1 = "9223372036854771712\n"


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("0::/\n", {"memory.max": "67108864\n"}, 64 << 20),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "4096\n"}, 4096),
        ("0::/a/b\n", {"a/b/memory.max": "4096\n", "a/memory.max": "8192\n"}, 4096),
        ("4:memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": "8192\n"}, 8192),
        ("4:cpu,memory:/job\n", {"memory/memory.limit_in_bytes": "8192\n"}, 8192),
        ("4:memory:/job\n", {"memory/job/memory.limit_in_bytes": NONE_IN_V1}, None),
        ("4:cpu:/job\n", {"cpu/job/memory.limit_in_bytes": "8192\n"}, None),
        # A container that is told the host's path and shown its own group where the host's root would be.
        ("0::/docker/0123\n", {"memory.max": "4096\n"}, 4096),
        ("0::/a:b\n", {"a:b/memory.max": "4096\n"}, 4096),
        ("", {}, None),
    ],
)
def test_the_least_limit_counts(tmp_path: Path, groups: str, files: dict[str, str], limit: int | None) -> None:
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert memory_limit(f"{tmp_path}/groups", f"{tmp_path}/mounted") == limit


def test_no_groups_no_limit(tmp_path: Path) -> None:
    assert memory_limit(f"{tmp_path}/groups", f"{tmp_path}/mounted") is None
