"""Looking into a guest: whether it makes progress, its state, its code, and what probably went wrong.

Below `vm`; imports `kvm`, `memory` and `boot`. Of all this only diagnosis, watch, consolewatch and hints are on the
path of a run that ends well.
"""
