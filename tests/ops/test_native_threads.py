"""The thread pool under stress. Each scenario runs in a process of its own, so that a hang is a failure and not the
end of the test run: `python test_native_threads.py SCENARIO`."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.errors import OpsError
from genmote.ops import quant
from genmote.ops.layer import Layer, LayerSpec, Linear
from genmote.ops.protocol import Span

native_ops = pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here", exc_type=OpsError)

SIZES = [(16, 32), (48, 64), (600, 576), (33, 1536), (2000, 576)]
Case = tuple[np.ndarray, np.ndarray, np.ndarray]


def cases(rows: int) -> list[Case]:
    """Some inputs, weights and what one thread makes of them."""
    rng, ops, made = np.random.default_rng(rows), native_ops.create(threads=1), []
    for out, cols in SIZES:
        x = rng.standard_normal((rows, cols)).astype(np.float32)
        raw = quant.quantize("Q8_0", rng.standard_normal((out, cols)).astype(np.float32))
        made.append((x, raw, ops.linear(x, Linear(ops.matrix("Q8_0", (out, cols), raw)))))
    return made


def matrices(ops: Any, some: list[Case]) -> list[Any]:
    return [ops.matrix("Q8_0", size, raw) for size, (_, raw, _) in zip(SIZES, some, strict=True)]


def check(ops: Any, some: list[Case], times: int) -> None:
    weights = matrices(ops, some)
    for _ in range(times):
        for weight, (x, _, wanted) in zip(weights, some, strict=True):
            assert np.array_equal(ops.linear(x, Linear(weight)), wanted)


def together(work: Callable[[int], None], count: int) -> None:
    """`work(i)` on `count` Python threads at once; the first exception comes back."""
    errors: list[BaseException] = []

    def guarded(i: int) -> None:
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# -- scenarios ---------------------------------------------------------------------------------------------------------


def many_loops() -> None:
    for threads in (2, 3, 8):
        ops = native_ops.create(threads=threads)
        for rows in (1, 2, 17):
            check(ops, cases(rows), 150)


def loops_after_sleep() -> None:
    """Workers that just fell asleep, or are about to, take the next loop."""
    ops, some = native_ops.create(threads=4), cases(1)
    weights = matrices(ops, some)
    for i in range(400):
        x, _, wanted = some[2]
        assert np.array_equal(ops.linear(x, Linear(weights[2])), wanted)
        time.sleep((i % 20) * 1e-5)


def shared_by_python_threads() -> None:
    """Products, attention with caches of their own, and steps without the pool, on one machine."""
    ops = native_ops.create(threads=2)
    nothing: Any = None
    layer = Layer(LayerSpec(0, 4, 2, 32, 0.2), *[nothing] * 6)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((40, h, 32)).astype(np.float32) for h in (4, 2, 2))

    def attend(own: Any) -> np.ndarray:
        cache, parts = own.cache(1, 2, 32, 64), []
        for start in range(0, 40, 8):
            rows = slice(start, start + 8)
            parts.append(own.attend(q[rows], k[rows], v[rows], [Span(cache, 0, 8)], layer))
            cache.advance(8)
        return np.concatenate(parts)

    wanted = attend(native_ops.create(threads=1))

    def work(i: int) -> None:
        some = cases(i + 1)
        for _ in range(20):
            check(ops, some, 2)
            assert np.array_equal(attend(ops), wanted)

    together(work, 4)


def several_machines() -> None:
    def work(i: int) -> None:
        check(native_ops.create(threads=3), cases(i + 1), 60)

    together(work, 3)


def made_and_ended_quickly() -> None:
    x, raw, wanted = cases(1)[1]
    for i in range(3000):
        ops = native_ops.create(threads=2 + i % 4)
        weight = Linear(ops.matrix("Q8_0", SIZES[1], raw))
        for _ in range(i % 3):
            assert np.array_equal(ops.linear(x, weight), wanted)
        del ops


def ended_by_many() -> None:
    def work(i: int) -> None:
        x, raw, wanted = cases(1)[1]
        for _ in range(300):
            ops = native_ops.create(threads=3)
            assert np.array_equal(ops.linear(x, Linear(ops.matrix("Q8_0", SIZES[1], raw))), wanted)

    together(work, 4)


def idle_costs_nothing() -> None:
    ops = native_ops.create(threads=4)
    check(ops, cases(2), 30)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(1.0)
    used = time.process_time() - before
    assert used < 0.020, f"{used * 1000:.1f} ms of processor time in one idle second"


def in_a_child(work: Callable[[], None]) -> None:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def forked() -> None:
    """A child works with the parent's machine on threads of its own, ends it and makes another; so does the parent."""
    ops, some = native_ops.create(threads=3), cases(2)
    check(ops, some, 5)
    kept = [ops]

    def child() -> None:
        check(kept[0], some, 5)
        assert len(os.listdir("/proc/self/task")) >= 3
        in_a_child(lambda: check(kept[0], some, 5))  # a child's child
        kept.clear()
        check(native_ops.create(threads=2), some, 5)

    for _ in range(20):
        in_a_child(child)
    check(ops, some, 5)


def forked_and_ended_unused() -> None:
    kept = [native_ops.create(threads=3)]
    check(kept[0], cases(2), 5)
    for _ in range(20):
        in_a_child(kept.clear)


def forked_in_the_middle() -> None:
    """While other Python threads compute: the fork waits for the kernels, and the child can use them."""
    ops, some = native_ops.create(threads=2), cases(2)
    done = threading.Event()

    def busy() -> None:
        while not done.is_set():
            check(ops, some, 1)

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):
            in_a_child(lambda: check(ops, some, 2))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    check(ops, some, 2)


def no_more_threads() -> None:
    """Where the system gives fewer threads than were asked for, those that are there do the work."""
    ops, some = native_ops.create(threads=200), cases(2)
    weights = matrices(native_ops.create(threads=1), some)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (100 << 20)  # a dozen stacks of 8 MB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for weight, (x, _, wanted) in zip(weights, some, strict=True):
        assert np.array_equal(ops.linear(x, Linear(weight)), wanted)
    assert 1 < len(os.listdir("/proc/self/task")) < 100


def more_tasks_than_a_ticket_holds() -> None:
    """Rows beyond 2**19 tasks of eight: one loop becomes several."""
    ops = native_ops.create(threads=2)
    table = ops.matrix("F16", (16, 1), quant.quantize("F16", np.arange(16, dtype=np.float32)[:, None]))
    tokens = np.random.default_rng(0).integers(0, 16, (1 << 22) + 5000).astype(np.int32)
    assert np.array_equal(ops.embed(table, tokens)[:, 0], tokens)


def beside_a_busy_program() -> None:
    """Prints products of a small model's size a second: of one thread undisturbed, of two beside a spinning process."""
    some = [c for c in cases(1) if c[1].size > 100_000]
    sizes = [s for s in SIZES if quant.nbytes("Q8_0", s) > 100_000]

    def rate(ops: Any, seconds: float) -> float:
        weights = [Linear(ops.matrix("Q8_0", s, raw)) for s, (_, raw, _) in zip(sizes, some, strict=True)]
        rates = []
        for _ in range(5):
            begin, count = time.perf_counter(), 0
            while time.perf_counter() - begin < seconds / 5:
                for weight, (x, _, _) in zip(weights, some, strict=True):
                    ops.linear(x, weight)
                    count += 1
            rates.append(count / (time.perf_counter() - begin))
        return statistics.median(rates)

    cores = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, cores)
    alone = rate(native_ops.create(threads=1), 3)
    spin = f"import os\nos.sched_setaffinity(0, [{cores[-1]}])\nprint(flush=True)\nwhile True: pass"
    spinner = subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE)
    try:
        assert spinner.stdout is not None
        spinner.stdout.readline()
        beside = rate(native_ops.create(threads=2), 5)
    finally:
        spinner.kill()
        spinner.wait()
    print(f"{alone:.0f} {beside:.0f}")


# -- tests -------------------------------------------------------------------------------------------------------------


def run(scenario: str, timeout: float = 120) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__, scenario], capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


SCENARIOS = [
    "many_loops",
    "loops_after_sleep",
    "shared_by_python_threads",
    "several_machines",
    "made_and_ended_quickly",
    "ended_by_many",
    "idle_costs_nothing",
    "more_tasks_than_a_ticket_holds",
]
UNIX = ["forked", "forked_and_ended_unused", "forked_in_the_middle"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario: str) -> None:
    run(scenario)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and limits as Linux has them")
@pytest.mark.parametrize("scenario", [*UNIX, "no_more_threads"])
def test_scenario_of_linux(scenario: str) -> None:
    run(scenario)


@pytest.mark.slow
@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: [0])(0)) < 2, reason="wants two cores")
def test_beside_a_busy_program() -> None:
    """Two threads, one core taken by another program: at least half of one undisturbed thread. Noise from a third
    program is given a second chance."""
    ratios = []
    for _ in range(3):
        alone, beside = map(float, run("beside_a_busy_program").split())
        ratios.append(beside / alone)
        if ratios[-1] >= 0.5:
            return
    pytest.fail(f"at most {max(ratios):.2f} of one thread's speed")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
