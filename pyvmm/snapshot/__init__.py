"""Snapshots: a VM that stands still, saved to a folder, and new VMs that go on from there.

file           the folder: what is in it, how it is written so that no kill leaves half of it, and how it is judged
memory         guest RAM as a sparse file, and as private copies of it
chain          memory of which others have a part: differential snapshots
configuration  what the VM was made of
disks          what the disks must still be, and what was written to their overlays
save, restore  the order of it all
inspect        what a snapshot is of
"""
