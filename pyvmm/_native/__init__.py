"""What is compiled, and the cffi build scripts: `_kvm`, the C helper, and `_rings`, virtqueues and data planes in C.

`_kvm` is imported by `pyvmm.kvm.native` alone; `_rings`, which knows no KVM, by `pyvmm.virtio.native` alone. Imports
nothing itself, so that it can be imported where the modules were never built.
"""
