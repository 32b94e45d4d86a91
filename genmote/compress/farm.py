"""Work that falls into independent jobs: on this machine's cores, or on the machines of a Ray cluster.

A job is a function of a module and one argument, both of which travel; so it needs no file of this machine.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from genmote.errors import OpsError, UserError
from genmote.records import usable_cores

T = TypeVar("T")
R = TypeVar("R")


class Farm:
    """`with Farm() as farm: list(farm.map(function, jobs))`. `ray`: a cluster's address ("auto": the one that runs
    here, "local": one of this machine alone); None: processes on this machine, as many as it has cores."""

    def __init__(self, ray: str | None = None, workers: int | None = None) -> None:
        self._workers = workers or usable_cores()
        self._pool: ProcessPoolExecutor | None = None
        self._ray: Any = None if ray is None else _connect(ray)

    def map(self, function: Callable[[T], R], jobs: Iterable[T]) -> Iterator[R]:
        """Results in the order of the jobs."""
        if self._ray is not None:
            remote = self._ray.remote(function)
            for found in [remote.remote(job) for job in jobs]:
                yield self._ray.get(found)
        elif self._workers == 1:
            yield from map(function, jobs)
        else:
            if self._pool is None:  # not by fork: PyTorch's threads do not outlive one
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(self._workers, mp_context=context)
            yield from self._pool.map(function, jobs)

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._ray is not None:
            self._ray.shutdown()


def _connect(address: str) -> Any:
    if importlib.util.find_spec("ray") is None:
        raise OpsError(f"--ray {address} needs Ray, which is not installed: run pip install 'genmote[cluster]'")
    import ray

    try:
        ray.init(address=None if address == "local" else address, include_dashboard=False, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as fault:
        raise UserError(f"--ray {address}: no cluster answers there ({str(fault).splitlines()[0]})") from None
    return ray
