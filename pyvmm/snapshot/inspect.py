"""What a snapshot is of, without making a VM of it. Imports its neighbours."""

from __future__ import annotations

import os

from pyvmm import layout
from pyvmm.errors import LoadError
from pyvmm.snapshot.chain import Layers
from pyvmm.snapshot.configuration import make_config
from pyvmm.snapshot.file import Folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def inspect(path: str | os.PathLike[str], *, verify: bool = False) -> dict[str, Any]:
    """What the snapshot in the folder `path` is of; sizes in bytes, `time` in seconds since 1970.

    With `verify` all of its memory is read and compared with its checksums. Raises LoadError.
    """
    with Folder(os.fspath(path)) as folder:
        state = folder.state
        config = make_config(state.get("config"), folder.path)
        try:
            found: dict[str, Any] = {
                "pyvmm": str(state["pyvmm"]),
                "time": float(state["time"]),
                "kernel": config.kernel,
                "format": str(state["loaded"]["format"]),
                "cpus": config.cpus,
                "mem": config.mem,
                "transport": str(state["transport"]),
                "devices": list(state["virtio"]),
                "disks": [disk.path for disk in config.disks],
            }
        except (KeyError, TypeError, ValueError) as error:
            raise LoadError(folder.path, f"its state lacks {error}") from error
        layers = Layers(folder, layout.ram_ranges(config.mem))
        try:
            found["memory"] = layers.stored
            found["bases"] = layers.paths[1:]
            if verify:
                layers.verify()
            found["verified"] = verify
        finally:
            layers.close()
        return found
