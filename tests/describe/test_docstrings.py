"""The small examples in the docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import genmote.describe

MODULES = [one.name for one in pkgutil.walk_packages(genmote.describe.__path__, "genmote.describe.") if not one.ispkg]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
