"""The jail, with the real kernel: what is beyond the limits does not work, what is within them does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genmote.cli import main
from genmote.device import jail, maker
from genmote.device.cgroup import Group, Limits
from genmote.device.hierarchy import mounts, places
from genmote.errors import SpecError, UserError
from tests.device.conftest import left_over

Python = Callable[[str], list[str]]
MIB = 1 << 20
GENMOTE = [sys.executable, "-m", "genmote.cli", "jail"]

pytestmark = pytest.mark.usefixtures("cgroups")


def test_a_command_that_wants_more_memory_is_killed_and_it_is_told(
    python: Python, capfd: pytest.CaptureFixture[str]
) -> None:
    status = main(["jail", "--memory", "48MiB", "--", *python("x = bytearray(80 << 20); print('alive')")])
    out, err = capfd.readouterr()
    assert status == 137
    assert out == ""
    assert "jail: killed: the command wanted more memory than the limit of 50.3 MB" in err
    assert "1 killed for memory" in err


def test_a_command_within_the_limit_runs_and_its_peak_is_counted(python: Python) -> None:
    program = "import time; x = bytearray(b'1') * (30 << 20); time.sleep(0.3)"
    report = jail.run(python(program), Limits(memory_bytes=64 * MIB))
    assert (report.status, report.oom_killed, report.usage.oom_kills) == (0, False, 0)
    assert report.usage.peak_bytes is not None and report.peak_rss_bytes is not None
    assert 30 * MIB <= report.usage.peak_bytes <= 48 * MIB
    assert 30 * MIB <= report.peak_rss_bytes <= 64 * MIB


def test_the_largest_process_of_a_short_command(python: Python, capfd: pytest.CaptureFixture[str]) -> None:
    """This process is larger than `true`, which ends before anyone could look, mostly: then nothing is said."""
    seen = [jail.run(["true"], Limits(memory_bytes=64 * MIB)).peak_rss_bytes for _ in range(3)]
    assert all(peak is None or 200_000 < peak < 16 * MIB for peak in seen)  # on a busy machine one may be seen
    own = jail.memory_bytes(os.getpid(), "VmRSS")
    size = own + 16 * MIB
    short = f"x = bytearray(b'1') * {size}; import os; os._exit(0)"  # the most of it at its very end
    report = jail.run(python(short), Limits(memory_bytes=size + 256 * MIB))
    assert size <= (report.peak_rss_bytes or 0) <= size + 64 * MIB
    child = ["sh", "-c", f'{sys.executable} -c "{short}"; true']  # of a process that the command waited for
    assert size <= (jail.run(child, Limits(memory_bytes=size + 256 * MIB)).peak_rss_bytes or 0) <= size + 64 * MIB
    slow = jail.run(["sleep", "0.4"], Limits(memory_bytes=64 * MIB))
    assert slow.peak_rss_bytes is not None and 200_000 < slow.peak_rss_bytes < 16 * MIB
    assert main(["jail", "--memory", "64MB", "--", "true"]) == 0
    assert re.search(r", largest process (unknown|\d[\d.]* [kM]B), ", capfd.readouterr().err)


def test_memory_beyond_the_limit_is_not_swapped(python: Python) -> None:
    group = Group.make(Limits(memory_bytes=40 * MIB), [])
    try:
        version, folder = group._folders["memory"]
        name = "memory.memsw.limit_in_bytes" if version == 1 else "memory.swap.max"
        if not (folder / name).exists():
            pytest.skip("this kernel has no swap accounting")
        assert int((folder / name).read_text()) == (40 * MIB if version == 1 else 0)
    finally:
        group.remove()


def test_a_fifth_of_a_processor_is_a_fifth_of_the_time_in_short_periods(python: Python, tmp_path: Path) -> None:
    spin = (
        "import time\nend = last = time.monotonic()\nend += 1\ngaps = []\n"
        "while last < end:\n    now = time.monotonic(); gaps.append(now - last); last = now\n"
        "gaps.sort(); print(gaps[-20])"
    )
    with open(tmp_path / "out", "wb") as out:
        report = jail.run(python(spin), Limits(cpus=0.2), stdout=out)
    assert report.cpu_s <= 0.26 * report.wall_s
    assert report.usage.throttled_s is not None and report.usage.throttled_s > 0
    # The twentieth longest pause of a second: with the kernel's usual period of 100 ms there would be but ten pauses.
    assert 0.002 < float((tmp_path / "out").read_text()) < 0.05


def test_more_processors_than_there_are_is_said_before_the_run(python: Python) -> None:
    told: list[str] = []
    report = jail.run(python("pass"), Limits(cpus=4000.0), told=told.append)
    assert report.not_limited == [f"processors: {len(os.sched_getaffinity(0))} are here, 4000 were asked for"]
    assert told == ["not limited here: " + report.not_limited[0]]


def test_cores_are_pinned(python: Python, tmp_path: Path) -> None:
    core = str(min(os.sched_getaffinity(0)))
    with open(tmp_path / "out", "wb") as out:
        report = jail.run(python("import os; print(sorted(os.sched_getaffinity(0)))"), Limits(cores=core), stdout=out)
    if report.not_limited:
        pytest.skip(report.not_limited[0])
    assert (tmp_path / "out").read_text() == f"[{core}]\n"


@pytest.fixture
def warm(tmp_path: Path) -> Path:
    """A file of 24 MiB on the disk, read before by someone outside of any jail."""
    path = tmp_path / "warm.bin"
    path.write_bytes(os.urandom(24 * MIB))
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        while file.read(MIB):
            pass
    return path


def read_all(path: Path) -> str:
    return f"f = open({str(path)!r}, 'rb', buffering=0)\nwhile f.read(1 << 16): pass"


def test_a_file_that_was_warm_is_charged_only_when_its_pages_were_dropped(python: Python, warm: Path) -> None:
    free = jail.run(python(read_all(warm)), Limits(memory_bytes=200 * MIB))
    charged = jail.run(python(read_all(warm)), Limits(memory_bytes=200 * MIB), drop=[warm])
    assert free.usage.peak_bytes is not None and charged.usage.peak_bytes is not None
    assert free.usage.peak_bytes < 20 * MIB
    assert charged.dropped.was_cached_bytes == 24 * MIB and charged.dropped.stayed_bytes == 0
    assert charged.usage.peak_bytes >= 24 * MIB
    if charged.disks:
        assert (free.usage.read_bytes or 0) < 8 * MIB
        assert (charged.usage.read_bytes or 0) >= 24 * MIB


def test_the_page_cache_is_reclaimed_within_the_limit_and_read_again(python: Python, warm: Path) -> None:
    report = jail.run(python(2 * (read_all(warm) + "\n")), Limits(memory_bytes=16 * MIB), drop=[warm])
    assert report.status == 0 and not report.oom_killed
    assert report.usage.peak_bytes is not None and report.usage.peak_bytes <= 16 * MIB
    assert report.usage.limit_hits is None or report.usage.limit_hits > 0  # None: this kernel does not count
    assert report.usage.refault_bytes is None or report.usage.refault_bytes > 0
    if report.disks:
        assert (report.usage.read_bytes or 0) >= 40 * MIB


def test_pages_that_stay_are_told(python: Python, warm: Path) -> None:
    import mmap

    told: list[str] = []
    with open(warm, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert sum(view[at] for at in range(0, len(view), 4096)) > 0  # touched, so mapped
        report = jail.run(python("pass"), Limits(memory_bytes=64 * MIB), drop=[warm], told=told.append)
        jail.run(python("pass"), Limits(cpus=1.0), drop=[warm], told=told.append)
        (warm.parent / "small").write_bytes(bytes(5000))
        with open(warm.parent / "small", "rb") as small, mmap.mmap(small.fileno(), 0, prot=mmap.PROT_READ) as few:
            assert few[0] == few[4096] == 0
            jail.run(python("pass"), Limits(memory_bytes=64 * MIB), drop=[warm.parent / "small"], told=told.append)
    assert report.dropped.stayed_bytes > 20 * MIB
    assert told == [
        f"{report.dropped.stayed_bytes / 1e6:.0f} MB of the command's files stay in the page cache, other programs "
        "have them mapped: they are neither charged nor read from the disk, so this run may be warmer than the board; "
        "end those programs first for a cold one"
    ], "some kilobytes, and a jail of processors alone, change nothing"


def test_the_disk_gives_no_more_than_its_rate(python: Python, warm: Path) -> None:
    report = jail.run(
        python(read_all(warm)), Limits(disk_read_bytes_per_s=40_000_000), drop=[warm], disk_of=[warm.parent]
    )
    if not report.disks or any("controller" in line for line in report.not_limited):
        pytest.skip(f"no disk can be limited here: {report.not_limited}")
    assert report.wall_s >= 0.8 * 24 * MIB / 40e6
    assert report.limits.disk_read_bytes_per_s == 40_000_000


def test_a_disk_that_cannot_be_limited_is_said(python: Python, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jail, "_disks", lambda paths: ([], [Path("/tmp")]))
    told: list[str] = []
    jail.run(python("pass"), Limits(disk_read_bytes_per_s=10**6), told=told.append)
    assert len(told) == 1 and told[0].startswith("not limited here: disk: the files lie on no block device")
    monkeypatch.setattr(jail, "_disks", lambda paths: (["999:999"], []))
    told.clear()
    jail.run(python("pass"), Limits(disk_read_bytes_per_s=10**6), told=told.append)
    assert told == ["not limited here: disk: the kernel takes no limit for device 999:999"]


@pytest.mark.parametrize(
    ("program", "status"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 15)", 143), ("pass", 0)]
)
def test_the_exit_status_is_the_commands(python: Python, program: str, status: int) -> None:
    report = jail.run(python(program), Limits(memory_bytes=64 * MIB))
    assert (report.status, report.oom_killed) == (status, False)


def test_json_is_alone_on_standard_output(python: Python) -> None:
    told = subprocess.run(
        [*GENMOTE, "--memory", "64MiB", "--json", "--", *python("print('hello')")],
        capture_output=True,
        text=True,
        check=True,
    )
    values = json.loads(told.stdout)
    assert told.stderr == "hello\n"
    assert values["status"] == 0 and values["limit_memory_bytes"] == 64 * MIB and values["wall_s"] > 0


def test_a_device_gives_its_limits(python: Python, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from genmote.device import profile

    board = profile.load("pi-zero-2w")
    assert main(["jail", "--device", "pi-zero-2w", "--cpus", "1", "--json", "--", *python("pass")]) == 0
    out, err = capfd.readouterr()
    values = json.loads(out)
    assert values["limit_memory_bytes"] == board.usable_bytes
    assert values["limit_cpus"] == 1.0
    assert values["limit_disk_read_bytes_per_s"] == board.storage.read_mb_s * 1e6
    assert "jail: not imitated: clock rate and instruction set" in err


def test_bytes_written_and_modelled_energy_are_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from genmote.device import energy

    monkeypatch.setattr(energy, "find", lambda root: None)
    write = f"dd if=/dev/zero of={tmp_path / 'wear'} bs=1M count=8 2>/dev/null"
    assert main(["jail", "--device", "pi-zero-2w", "--json", "--", "sh", "-c", write]) == 0  # by a grandchild, unsynced
    values = json.loads(capfd.readouterr().out)
    assert 8 * MIB <= values["written_bytes"] < 12 * MIB or values["cgroup_versions"] == [2]
    assert values["energy"] == "modelled" and values["energy_of"].startswith("Raspberry Pi Zero 2 W")
    assert values["energy_j"] >= 0.6 * values["wall_s"]  # 0.6 W idle
    assert main(["jail", "--memory", "64MiB", "--", "true"]) == 0
    told = capfd.readouterr().err
    assert ", written " in told and told.rstrip().endswith("energy unavailable")


def test_jails_side_by_side_do_not_share(python: Python) -> None:
    reports: list[jail.Report] = []
    threads = [
        threading.Thread(
            target=lambda size=size: reports.append(
                jail.run(python(f"x = bytearray(b'1') * ({size} << 20)"), Limits(memory_bytes=48 * MIB))
            )
        )
        for size in (20, 30, 80)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(report.status for report in reports) == [0, 0, 137]


def test_a_jail_within_a_jail_is_bound_by_both(python: Python) -> None:
    def both(outer: str, inner: str, size: int) -> int:
        program = python(f"x = bytearray(b'1') * ({size} << 20)")
        return main(["jail", "--memory", outer, "--", *GENMOTE, "--memory", inner, "--", *program])

    assert both("120MiB", "40MiB", 20) == 0
    assert both("120MiB", "40MiB", 60) == 137
    assert both("60MiB", "200MiB", 90) == 137


def test_what_is_left_running_is_ended(python: Python) -> None:
    child = "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(60)"
    started = time.monotonic()
    report = jail.run(python(child), Limits(memory_bytes=64 * MIB))
    assert report.status == 0 and report.ended_processes == 1
    assert time.monotonic() - started < 10


def test_a_command_that_is_not_there_leaves_nothing() -> None:
    with pytest.raises(UserError, match="no-such-command: No such file or directory: wanted a command that can be run"):
        jail.run(["no-such-command"], Limits(memory_bytes=64 * MIB))


def test_a_file_that_goes_while_pages_are_dropped_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"x" * 4096)
    report = jail.run(["true"], Limits(memory_bytes=64 * MIB), drop=[tmp_path / "gone.tmp", tmp_path / "here"])
    assert (report.status, report.dropped.files) == (0, 1)
    with pytest.raises(UserError, match="here/not: Not a directory: wanted a file whose pages can be dropped"):
        jail.run(["true"], Limits(memory_bytes=64 * MIB), drop=[tmp_path / "here/not"])


def start(command: list[str]) -> subprocess.Popen[str]:
    """A jail in a process of its own, once its command runs."""
    process = subprocess.Popen(
        [*GENMOTE, "--memory", "64MiB", "--", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    return process


SLEEP = "import time; print('here', flush=True); time.sleep(60)"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_end_the_command_and_clean_up(python: Python, number: int, status: int) -> None:
    process = start(python(SLEEP))
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == status
    assert left_over() == []


def test_a_command_that_ignores_signals_is_ended_too(python: Python) -> None:
    ignore = "import signal\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)\n"
    process = start(python(ignore + SLEEP))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130


def test_a_killed_jail_takes_its_command_along_and_the_next_one_sweeps(python: Python) -> None:
    pid = "import os; print(os.getpid(), file=open({0!r}, 'w'))\n"
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"genmote-test-{os.getpid()}"
    process = start(python(pid.format(str(path)) + SLEEP))
    command = int(path.read_text())
    path.unlink()
    process.kill()
    process.communicate(timeout=20)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if Path(f"/proc/{command}/stat").read_text().split(")")[1].split()[0] != "Z":
                time.sleep(0.02)
                continue
        break
    else:
        pytest.fail("the command outlived its jail")
    assert left_over() != []
    assert jail.run(["true"], Limits(memory_bytes=64 * MIB)).status == 0
    assert left_over() == []


def killed_jail_with_a_grandchild() -> int:
    """A process that outlived its jail, which was killed."""
    process = start(["sh", "-c", "echo here; sleep 97 & echo $!; wait"])
    assert process.stdout is not None and process.stderr is not None
    grandchild = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()  # the grandchild has them open too
    process.stderr.close()
    return grandchild


def ended(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_what_a_killed_jail_left_running_is_ended_by_the_next() -> None:
    grandchild = killed_jail_with_a_grandchild()
    assert not ended(grandchild) and left_over() != []
    assert jail.run(["true"], Limits(memory_bytes=64 * MIB)).status == 0
    assert ended(grandchild) and left_over() == []


def test_a_living_jail_is_left_alone_by_the_next(python: Python) -> None:
    process = start(python(SLEEP))
    assert jail.run(["true"], Limits(memory_bytes=64 * MIB)).status == 0
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143  # asked to end by this test, not killed by that jail


def test_a_process_that_has_got_the_number_of_a_killed_jail_does_not_keep_its_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as other:  # as if another process had had our number
        other.setattr(maker, "_born", lambda pid: "17")
        group = Group.make(Limits(memory_bytes=64 * MIB), [])
    assert jail.run(["true"], Limits(memory_bytes=64 * MIB)).status == 0
    assert [path for path in left_over() if path.name == group.name] == []


def test_a_group_of_another_container_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as other:
        other.setattr(maker, "_numbering", lambda: "17")
        other.setattr(maker, "_born", lambda pid: "17")
        group = Group.make(Limits(memory_bytes=64 * MIB), [])
    try:
        assert jail.run(["true"], Limits(memory_bytes=64 * MIB)).status == 0
        assert group.current_bytes() is not None
    finally:
        group.remove()


def test_a_jail_whose_proc_has_other_numbers_is_left_alone_and_sweeps_nothing(python: Python, tmp_path: Path) -> None:
    new = ["unshare", "--pid", "--fork"]  # /proc stays the outer one
    if shutil.which("unshare") is None or subprocess.run([*new, "true"], capture_output=True).returncode:
        pytest.skip("no process numbers of its own can be had here")
    first, second = (" ".join(map(shlex.quote, [*GENMOTE, "--memory", "64MiB", "--"])) for _ in range(2))
    lives = shlex.join(python(f"import time; print(file=open({str(tmp_path / 'in')!r}, 'w')); time.sleep(3)"))
    script = f"""
        for i in $(seq 200); do true & done; wait
        {first} {lives} & first=$!
        until [ -e {shlex.quote(str(tmp_path / "in"))} ]; do sleep 0.05; done
        {second} true; echo second $?
        wait $first; echo first $?"""
    ran = subprocess.run([*new, "sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.stdout.split() == ["second", "0", "first", "0"], ran.stderr


def test_a_number_that_went_to_a_process_elsewhere_is_not_signalled(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "97"]) as other:
        group = Group.make(Limits(memory_bytes=64 * MIB), [])
        try:
            read = Group.processes
            told = iter([[other.pid], [other.pid]])  # `end` sees it twice, then it is asked again
            monkeypatch.setattr(Group, "processes", lambda self: next(told, None) or read(self))
            group.end()
            assert other.poll() is None
        finally:
            other.kill()
            monkeypatch.undo()
            group.remove()


@pytest.mark.parametrize("fault", [OSError(38, "not implemented"), PermissionError(1, "filtered"), AttributeError()])
def test_processes_are_ended_without_handles_too(
    python: Python, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def none(*_: object) -> int:
        raise fault

    monkeypatch.setattr(os, "pidfd_open", none)
    check_that_what_stays_is_ended(python)


def test_a_signal_that_a_filter_refuses_is_sent_the_other_way(python: Python, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "filtered")

    monkeypatch.setattr(signal, "pidfd_send_signal", refused)
    check_that_what_stays_is_ended(python)


def test_what_another_user_left_costs_the_next_jail_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    grandchild = killed_jail_with_a_grandchild()

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as other:
        other.setattr(signal, "pidfd_send_signal", refused)
        other.setattr(os, "kill", refused)
        started = time.monotonic()
        assert jail.run(["true"], Limits(memory_bytes=64 * MIB)).status == 0
        assert time.monotonic() - started < 1
        assert not ended(grandchild)
    with monkeypatch.context() as other:  # nor one in whose place this user may write nothing
        other.setattr(Path, "rmdir", refused)
        started = time.monotonic()
        group = Group.make(Limits(memory_bytes=64 * MIB), [])
        assert time.monotonic() - started < 1
    group.remove()
    assert jail.run(["true"], Limits(memory_bytes=64 * MIB)).status == 0
    assert ended(grandchild)


def check_that_what_stays_is_ended(python: Python) -> None:
    group = Group.make(Limits(memory_bytes=64 * MIB), [])
    try:
        process = subprocess.Popen(python("import time; time.sleep(97)"))
        for entrance in group.entrances():
            entrance.write_text(str(process.pid))
        assert group.end() == 1
        assert process.wait(timeout=10) == -signal.SIGKILL
    finally:
        group.remove()


# -- refusals: exit status 2, and the command never runs -------------------------------------------------------------


def test_no_such_group_is_a_refusal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "ran"
    status = main(["jail", "--memory", "64MiB", "--cgroup", "/not/there", "--", "touch", str(mark)])
    err = capfd.readouterr().err
    assert status == 2 and not mark.exists()
    assert err.startswith("genmote jail: no jail can be made here: ") and "--cgroup" in err


def test_read_only_groups_are_a_refusal(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    points = " ".join(
        str(path) for path in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()] if path.is_mount()
    )
    script = f'for p in {points}; do mount -o remount,ro,bind "$p" || exit 99; done; exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *GENMOTE, "--memory", "64MiB", "--", "touch", str(mark)]
    try:
        told = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("unshare is not here")
    if told.returncode in (1, 99):
        pytest.skip(f"no mount namespace here: {told.stderr.strip()}")
    assert told.returncode == 2 and not mark.exists()
    assert "no jail can be made here" in told.stderr and len(told.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "a jail without limits: give --device, --memory, --cpus, --cores or --disk"),
        (["--memory", "many"], "memory 'many': wanted an amount above 0 such as 150MB, 512MiB or 4GB"),
        (["--memory", "4kB"], "memory of 4000 B (was 4MB meant?): wanted at least 1.05MB"),
        (["--memory", "150"], "memory of 150 B (was 150MB meant?): wanted at least 1.05MB"),
        (["--memory", "1MB"], "memory of 1000000 B: wanted at least 1.05MB"),
        (["--disk", "40"], "--disk 40: 40 bytes a second (was 40MB/s meant?), wanted at least 10kB/s"),
        (["--cpus", "0.01"], "cpus=0.01: wanted 0.1 or more processors"),
        (["--device", "pi-zero-2w", "--cpus", "0"], "cpus=0: wanted 0.1 or more processors"),
        (["--memory", "64MiB", "--drop", "/missing"], "--drop /missing: wanted a file whose pages can be dropped"),
        (["--disk", "fast"], "disk 'fast': wanted bytes a second such as 40MB/s or 2GB/s"),
        (["--device", "stm32h7"], "stm32h7: a microcontroller"),
        (["--cores", "9999"], "the limit of cores cannot be set to 9999"),
    ],
)
def test_impossible_limits_are_one_line(words: list[str], told: str, capfd: pytest.CaptureFixture[str]) -> None:
    if "--cores" in words and "cores" not in places({"memory", "cores"}, mounts()):
        pytest.skip("this kernel has no cpuset controller")
    assert main(["jail", *words, "--", "true"]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"genmote jail: {told}") and len(err.splitlines()) == 1


def test_limits_tell_all_faults_at_once() -> None:
    with pytest.raises(
        SpecError, match=r"memory of 1 B \(was 1MB meant\?\): wanted at least 1.05MB; cpus=0: wanted 0.1 or more"
    ):
        Group.make(Limits(memory_bytes=1, cpus=0.0), [])


@pytest.fixture
def new_disk(tmp_path: Path) -> Iterator[Path]:
    """A file on a disk that the kernel has never seen."""
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 * MIB)
    try:
        device = subprocess.run(["losetup", "-f", "--show", image], check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no loop device can be made here")
    try:
        subprocess.run(["mkfs.ext4", "-q", device.strip()], check=True, capture_output=True)
        subprocess.run(["mount", device.strip(), place], check=True, capture_output=True)
        try:
            (place / "warm.bin").write_bytes(os.urandom(16 * MIB))
            os.sync()
            yield place / "warm.bin"
        finally:
            subprocess.run(["umount", place], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be made on a loop device here")
    finally:
        subprocess.run(["losetup", "-d", device.strip()], check=True)


def test_what_is_read_from_a_disk_that_never_had_a_limit_is_counted(python: Python, new_disk: Path) -> None:
    report = jail.run(python(read_all(new_disk)), Limits(memory_bytes=200 * MIB), drop=[new_disk])
    assert report.disks and report.usage.read_bytes is not None and report.usage.read_bytes >= 16 * MIB
