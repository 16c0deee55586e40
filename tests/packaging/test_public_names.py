"""What `import pyvmm` promises: the public names, each importable, none of them paid for before its use."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pyvmm


def test_every_public_name_is_there() -> None:
    for name in pyvmm.__all__:
        assert getattr(pyvmm, name) is not None
    assert set(dir(pyvmm)) == set(pyvmm.__all__)


def test_any_other_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"'pyvmm' has no attribute 'Vm'"):
        pyvmm.Vm  # noqa: B018
    with pytest.raises(ImportError):
        exec("from pyvmm import Vm")


def test_all_exceptions_are_public() -> None:
    from pyvmm import errors

    raised = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert raised <= set(pyvmm.__all__)


def test_importing_costs_nothing() -> None:
    show = "print(*sorted(set(sys.modules) - before - {'__future__'}))"
    program = f"import sys; before = set(sys.modules); import pyvmm; {show}"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert result.stdout.split() == ["pyvmm"]
