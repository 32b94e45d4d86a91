"""Work that falls into independent jobs: on this machine's cores, or on the machines of a Ray cluster.

A job is a function of a module and one argument, both of which travel; so it needs no file of this machine.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

from genmote import gate
from genmote.errors import OpsError, UserError
from genmote.records import usable_cores

REACH_S = 10.0
T = TypeVar("T")
R = TypeVar("R")


class Farm:
    """`with Farm() as farm: list(farm.map(function, jobs))`. `ray`: a cluster's address ("auto": the one that runs
    here, "local": one of this machine alone); None: threads on this machine, as many as it has cores; jobs should spend
    their time in NumPy, which lets threads run side by side."""

    def __init__(self, ray: str | None = None, workers: int | None = None) -> None:
        self._pool = ThreadPoolExecutor(workers or usable_cores())
        self._ray: Any = None if ray is None else _connect(ray)

    def map(self, function: Callable[[T], R], jobs: Iterable[T]) -> Iterator[R]:
        """Results in the order of the jobs."""
        if self._ray is not None:
            remote = self._ray.remote(function)
            for found in [remote.remote(job) for job in jobs]:
                yield self._ray.get(found)
        else:
            yield from self._pool.map(function, jobs)

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._ray is not None:
            self._ray.shutdown()


def _connect(address: str) -> Any:
    if importlib.util.find_spec("ray") is None:
        raise OpsError(f"--ray {address} needs Ray, which is not installed: run pip install 'genmote[cluster]'")
    if address not in ("auto", "local"):
        _reach(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    import ray

    try:
        ray.init(
            address=None if address == "local" else address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as fault:
        raise UserError(f"--ray {address}: no cluster answers there ({str(fault).splitlines()[0]})") from None
    return ray


def _reach(address: str) -> None:
    """See that somebody listens there: Ray itself would try for minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or port is None:
        raise UserError(f"--ray {address}: wanted HOST:PORT, ray://HOST:PORT, auto or local")
    gate.permit("ray", host, "parts of a model")
    try:
        socket.create_connection((host, port), timeout=REACH_S).close()
    except OSError as fault:
        raise UserError(f"--ray {address}: no cluster answers there ({fault.strerror or fault})") from None
