"""Benchmarks: pyvmm beside a floor program in C and QEMU's microvm machine, interleaved in one run. `make bench`."""
