"""Looking into a guest that stands still: its state, its page tables, its code, and what probably went wrong.

Below `vm`, which builds a report when a guest ends badly; imports `kvm`, `memory` and `boot`. None of it is on the
path of a run that ends well.
"""
