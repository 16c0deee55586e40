"""A shared directory with a client, for the tests of shares."""

from __future__ import annotations

import pytest

from pyvmm.backends.share.opening import open_share
from tests.support.p9client import Client, P9Error, direct


@pytest.fixture
def shared(tmp_path):
    """(client, path of the directory that is shared with it)."""
    folder = tmp_path / "shared"
    folder.mkdir()
    share = open_share(folder)
    client = Client(direct(share))
    client.share = share
    yield client, folder
    share.close()


def refused(function, *arguments, **named):
    """The error number that a call ends with."""
    with pytest.raises(P9Error) as raised:
        function(*arguments, **named)
    return raised.value.errno
