import sysconfig

from setuptools import setup

abi3 = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp311"}}
setup(cffi_modules=["pyvmm/_native/build_kvm.py:ffibuilder"], options=abi3)
