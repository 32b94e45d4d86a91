"""Op sets: implementations of `ops.protocol.Ops`, each one file `NAME_ops.py` with a function `create`, found by name.

numpy    the reference, slow and plain                     needs NumPy
native   C++ kernels on quantised weights, for devices     needs the compiled extension `_native`
torch    differentiable, for training                      needs PyTorch
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote.errors import OpsError

if TYPE_CHECKING:
    from genmote.ops.protocol import Ops


def names() -> list[str]:
    """Every op set that has a file here, whether or not it can run on this machine.

    >>> names()
    ['native', 'numpy', 'torch']
    """
    return sorted(path.name.removesuffix("_ops.py") for path in Path(__file__).parent.glob("*_ops.py"))


def load(name: str | None = None, **options: Any) -> Ops:
    """The op set called `name`; None: `native` where its kernels were built, else `numpy` (`.name` says which).

    `options` go to the op set's `create`. Raises OpsError for an unknown name, an unknown option, or kernels or
    libraries that are absent.
    """
    if name is None:
        name = "native" if importlib.util.find_spec("genmote.ops._native") else "numpy"
    if name not in names():
        raise OpsError(f"op set {name!r}: there are {', '.join(names())}; choose one of these")
    create = importlib.import_module(f"genmote.ops.{name}_ops").create
    try:
        ops: Ops = create(**options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise OpsError(
            f"op set {name!r} has no such option: {', '.join(options)}; see the docstring of create"
        ) from error
    return ops
