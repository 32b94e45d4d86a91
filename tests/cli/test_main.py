"""The dispatcher: verbs by file name, one line for each kind of fault, the right exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from genmote import __version__, registry
from genmote.cli import commands, main, verbs
from genmote.errors import GenmoteError
from tests.cli.conftest import Genmote

PACKAGE = Path(__file__).parents[2] / "genmote" / "cli"


def test_every_file_is_a_verb() -> None:
    files = {path.stem.replace("_", "-") for path in PACKAGE.glob("*.py") if not path.name.startswith("_")}
    files |= {path.parent.name.replace("_", "-") for path in PACKAGE.glob("*/__init__.py")}
    assert set(verbs()) == files
    assert {"pull", "models", "info", "generate", "chat", "perplexity", "serve", "doctor"} <= files


def test_help_and_version(genmote: Genmote) -> None:
    assert genmote("--version").out == f"genmote {__version__}\n"
    for ran in (genmote(), genmote("--help"), genmote("help")):
        assert ran.status == 0 and ran.err == ""
        assert all(f"\n  {verb} " in ran.out for verb in verbs())


@pytest.mark.parametrize("verb", commands())
def test_every_verb_tells_of_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*verb.split(), "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and f"usage: genmote {verb}" in shown and "--json" in shown


@pytest.mark.parametrize("verb", ["generate", "plan"])
def test_help_tells_what_is_filled_in_where_one_of_two_settings_is_given(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from genmote.runtime.eviction import DEFAULT, SHARE

    with pytest.raises(SystemExit):
        main([verb, "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert f"(default with --kv-tokens: {DEFAULT})" in told
    assert "(default with --evict: a quarter of it)" in told and SHARE == 0.25


def test_listing_the_verbs_loads_nothing_heavy() -> None:
    code = "import sys; from genmote.cli import main; main([]); print(*sys.modules, file=sys.stderr)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "torch", "jinja2", "starlette", "ssl", "urllib.request"} & set(told.stderr.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chatt"], "genmote chatt: no verb is called 'chatt', did you mean chat?; known: adapt, ask, chat, "),
        (["--jsn"], "genmote: --jsn stands before any verb: write genmote VERB, see genmote --help"),
        (["info"], "genmote info: the following arguments are required: MODEL; see genmote info --help"),
        (
            ["models", "--jsn"],
            "genmote models: unrecognized arguments: --jsn, did you mean --json?; see genmote models --help",
        ),
        (["models", "--wholly-else"], "unrecognized arguments: --wholly-else; see genmote models --help"),
        (
            ["generate", "m", "--json-schema", "s"],
            "arguments: --json-schema s, did you mean --schema?; see genmote gen",
        ),
        (["chat", "m", "--max_tokens=3"], "arguments: --max_tokens=3, did you mean --max-tokens?; see genmote chat"),
        (["make-model", "--shapes", "a"], "arguments: --shapes, did you mean --shape?; see genmote make-model --help"),
        (["generate", "m", "--max-tokens", "x"], "argument -n/--max-tokens: invalid int value: 'x'"),
        (["generate", "m", "-p", "x", "--temperature", "nan"], "temperature=nan, wanted a number"),
        (
            ["generate", "m", "-p", "x", "--temperature", "nan", "--top-p", "7", "--top-k", "-3"],
            "temperature=nan, wanted a number; top_k=-3: use a whole number, 0 for all tokens; top_p=7.0: use a number",
        ),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(genmote: Genmote, words: list[str], message: str) -> None:
    ran = genmote(*words)
    assert ran.status == 2 and ran.out == ""
    assert message in ran.err and ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("fault", "status", "line"),
    [
        (GenmoteError("two\nlines"), 1, "genmote test: two lines\n"),
        (KeyboardInterrupt(), 130, "genmote test: interrupted\n"),
        (MemoryError(), 1, "genmote test: not enough memory: use a smaller model, --context or --threads\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "genmote test: /x: Permission denied\n"),
        (OSError("no more"), 1, "genmote test: no more\n"),
    ],
)
def test_faults_of_a_verb(
    genmote: Genmote, monkeypatch: pytest.MonkeyPatch, fault: BaseException, status: int, line: str
) -> None:
    class Settings:
        pass

    def run(settings: object, out: object) -> None:
        raise fault

    module = SimpleNamespace(__doc__="A test.", Settings=None, run=run)
    monkeypatch.setattr(registry, "load", lambda *names, **options: module)
    monkeypatch.setattr("genmote.spec.add_flags", lambda parser, cls: None)
    monkeypatch.setattr("genmote.spec.from_flags", lambda cls, namespace: None)
    ran = genmote("test")
    assert (ran.status, ran.err) == (status, line)


def test_output_into_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m genmote.cli --help | true; echo ${{PIPESTATUS[0]}}"
    for _ in range(3):
        ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert ran.stderr == "" and ran.stdout.strip() in ("0", "141")


def start_pull(own_home: Path, tmp_path: Path) -> subprocess.Popen[str]:
    """A pull that hangs: its package index is a server that never answers."""
    listener = (
        "import socket, sys; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); "
        "print(s.getsockname()[1], flush=True); s.accept(); import time; time.sleep(60)"
    )
    server = subprocess.Popen([sys.executable, "-c", listener], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = server.stdout.readline().strip()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    environment |= {
        "GENMOTE_HOME": str(own_home),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"http://127.0.0.1:{port}/simple",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "genmote.cli", "pull", "smollm2-135m"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.server = server  # type: ignore[attr-defined]
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_pull_leaves_nothing(
    own_home: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    process = start_pull(own_home, tmp_path)
    try:
        for _ in range(200):
            if list(own_home.rglob("pip.log")):
                break
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        server = process.server  # type: ignore[attr-defined]
        server.kill()
        server.communicate()
    assert process.returncode == status
    assert out == "" and "Traceback" not in err
    assert not [p for p in (own_home / "models").rglob("*") if p.is_file()]


def test_the_matrix_library_keeps_to_one_thread_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, found in ((None, "1"), ("3", "3")):
        monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
        if given:
            monkeypatch.setenv("OPENBLAS_NUM_THREADS", given)
        main(["--version"])
        assert os.environ["OPENBLAS_NUM_THREADS"] == found


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "no-such-model", "--prompt", "x", "--json"],
        ["generate", "--no-such-flag", "--json"],
        ["plan", "no-such-model", "--json"],
        ["no-such-verb", "--json"],
    ],
)
def test_a_failure_with_json_is_one_object_too(genmote, own_home, words):
    ran = genmote(*words)
    assert ran.status == 2 and ran.err.count("\n") == 1
    assert ran.json["status"] == 2 and ran.err.endswith(ran.json["error"] + "\n")


def test_a_value_that_begins_with_a_minus_is_told(genmote):
    ran = genmote("plan", "m", "--memory", "-5MB")
    assert ran.status == 2 and "argument --memory: wanted one value, which begins with no -" in ran.err
