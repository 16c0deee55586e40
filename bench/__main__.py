"""`python -m bench`: measure everything, print tables, write JSON and plots, and hold it against the bars.

`python -m bench exits` measures exits, whole processes and memory, `boot` booting Linux, `virtio` requests to virtio
devices, `share` the files of a 9p share, `snapshot` saving and restoring VMs, `scale` how costs grow with a VM, `idle`
many VMs that do nothing, `trace` what tracing costs; `report` holds what was measured last against the bars. Each of
them has `--help`; without one, all run in turn.
"""

from __future__ import annotations

import sys
from importlib import import_module

KINDS = ("exits", "boot", "virtio", "snapshot", "share", "scale", "idle", "trace", "report")
"""Modules beside this one, each with a `main`, in the order in which all run."""


def main(arguments: list[str]) -> int:
    if not arguments:
        for kind in KINDS:
            print(f"\n--- {kind}", flush=True)
            import_module(f"bench.{kind}").main([])
        return 0
    if arguments[0] not in KINDS:
        print(f"{__doc__}\nexpected one of: {' '.join(KINDS)}", file=sys.stderr)
        return 0 if arguments[0] in ("-h", "--help") else 2
    return int(import_module(f"bench.{arguments[0]}").main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
