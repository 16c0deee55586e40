"""Lesson 15: snapshots. `pyvmm lesson check 15` tells what is still wrong."""

from pyvmm import VM


def precopy(guest, send, limit, rounds):
    """Send the memory of a running guest; returns how many pages were sent while it stood still.

        guest.pages         how many pages it has
        guest.read(page)    the page's content, as it is now
        guest.dirty()       the numbers of the pages that it has written to since the last call (or since the
                            beginning), as a set
        guest.pause()       it runs no more from here on
        send(page, data)    sends a page; one that is sent again takes the place of the one before

    The first round sends every page, each further one what became dirty. When at most `limit` pages are dirty at the
    end of a round, or `rounds` rounds are over, the guest is paused and the rest is sent. Then the receiver has its
    memory as it is.
    """
    ...


def give(vm, path):
    """Leave in the folder `path` all that `take` needs to go on with `vm`, which runs. Here it must run no more."""
    ...


def take(path):
    """Go on with what `give` has left in `path`: a VM that runs. The caller closes it."""
    ...
