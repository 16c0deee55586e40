"""What is compiled: the C helper and the cffi build script of the extension module `_kvm`.

Imported by `pyvmm.kvm` alone. Imports nothing itself, so that it can be imported where the module was never built.
"""
