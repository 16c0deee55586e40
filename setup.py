import sysconfig

from setuptools import setup

abi3 = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp311"}}
modules = ["pyvmm/_native/build_kvm.py:ffibuilder", "pyvmm/_native/build_rings.py:ffibuilder"]
setup(cffi_modules=modules, options=abi3)
