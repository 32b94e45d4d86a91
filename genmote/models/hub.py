"""Model files from the Hugging Face hub, by HTTPS: ``hf:ORG/REPO/FILE.gguf``.

Only the hub's file address is used (``/ORG/REPO/resolve/main/FILE``), which answers with the file or redirects to it,
and names its size and sha256 in ``X-Linked-Size`` and ``X-Linked-ETag``. ``HF_ENDPOINT`` names another hub,
``HF_TOKEN`` opens gated files. A dropped connection is resumed by a Range request.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import socket
import time
import urllib.error
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from urllib.parse import quote

from genmote import gate
from genmote.errors import ModelNameError, PullError
from genmote.fetch import CHUNK, Progress, need_space, place, quiet, staging

TRIES = 5
TRIES_WITHOUT_A_NAME = 2  # a host name that does not resolve: no network, or a wrong HF_ENDPOINT
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0


@dataclass(frozen=True)
class HubFile:
    """One file of one repository on the hub."""

    org: str
    repo: str
    file: str

    @property
    def name(self) -> str:
        return f"hf:{self.org}/{self.repo}/{self.file}"

    @property
    def url(self) -> str:
        endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        return f"{endpoint.rstrip('/')}/{self.org}/{self.repo}/resolve/main/{quote(self.file)}"

    def path(self, models: Path) -> Path:
        """Where the file lies in a models folder."""
        return models / "hf" / self.org / self.repo / self.file


def parse(name: str) -> HubFile:
    """The file that ``hf:ORG/REPO/FILE.gguf`` names; raises `ModelNameError` when it is no such name.

    >>> parse("hf:ggml-org/tiny/q4/tiny-Q4_0.gguf").file
    'q4/tiny-Q4_0.gguf'
    """
    match = re.fullmatch(r"hf:([\w.-]+)/([\w.-]+)/((?:[\w. +-]+/)*[\w. +-]+\.gguf)", name, re.ASCII)
    if match is None or any(set(piece) <= {"."} for piece in re.split("[:/]", name)):
        raise ModelNameError(f"{name!r} is no hub file: wanted hf:ORG/REPO/FILE.gguf")
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", name):
        raise ModelNameError(f"{name!r} is one piece of a split file: wanted a model in a single file")
    return HubFile(*match.groups())


def pull(file: HubFile, target: Path, progress: Progress = quiet) -> Path:
    """Fetch `file` to `target`; raises `PullError` (nothing is left then) and `UserError` where the gate is shut."""
    with staging(target, progress) as folder:
        if target.exists():
            return target  # the process that we waited for has fetched it
        Download(file, folder / "part", progress).run()
        with open(folder / "part", "rb") as got:
            if got.read(4) != b"GGUF":
                raise PullError(f"{file.url} is no GGUF file: nothing was kept; check the name, and HF_ENDPOINT if set")
        place(folder / "part", target)
    return target


class Absent(PullError):
    """The hub has no such file."""


class _Broken(Exception):
    """A fault that another try may mend."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Download:
    """One file on its way: bytes so far, their hash, and what the hub says the whole should be."""

    def __init__(self, file: HubFile, part: Path, progress: Progress) -> None:
        self.file, self.part, self.progress = file, part, progress
        self.done = 0
        self.digest = hashlib.sha256()
        self.etag: str | None = None
        self.total: int | None = None
        self.sha256: str | None = None

    def run(self) -> None:
        """Fetch the whole file, trying again after a pause where a fault may pass."""
        tries, wait_s, most = 0, FIRST_WAIT_S, 0
        while True:
            try:
                self.attempt()
                break
            except (_Broken, OSError, http.client.HTTPException) as fault:
                reason = str(getattr(fault, "reason", fault)) or type(fault).__name__
                if isinstance(fault, urllib.error.HTTPError):
                    reason = f"HTTP {fault.code} {fault.reason}"
                if self.done > most:  # the last try brought something new: a poor link is not a dead one
                    tries, wait_s, most = 0, FIRST_WAIT_S, self.done
                tries += 1
                nameless = isinstance(getattr(fault, "reason", fault), socket.gaierror)
                if tries >= (most_tries := TRIES_WITHOUT_A_NAME if nameless else TRIES):
                    raise PullError(
                        f"{self.file.name} could not be fetched after {tries} tries ({reason}): nothing was kept; "
                        "check the network and try again"
                    ) from None
                asked = fault.wait_s if isinstance(fault, _Broken) else None
                pause_s = min(asked if asked is not None else wait_s, LONGEST_WAIT_S)
                self._pause(pause_s, f"{reason}: trying again in {pause_s:.0f} s ({tries + 1} of {most_tries})")
                wait_s *= 2
        if self.sha256 is not None and self.digest.hexdigest() != self.sha256:
            raise PullError(
                f"{self.file.name} came with sha256 {self.digest.hexdigest()[:12]}…, "
                f"the hub names {self.sha256[:12]}…: nothing was kept; try again"
            )

    def _pause(self, pause_s: float, why: str) -> None:
        """Wait, saying why, in steps in which the progress may stop the fetch."""
        end = time.monotonic() + pause_s
        self.progress(why, 0, 0)
        while (left_s := end - time.monotonic()) > 0:
            time.sleep(min(0.25, left_s))
            self.progress(why, 0, 0)

    def attempt(self) -> None:
        """One request, from where the last one broke off."""
        headers = {"User-Agent": "genmote", "Accept-Encoding": "identity"}
        if os.environ.get("HF_TOKEN"):
            headers["Authorization"] = f"Bearer {os.environ['HF_TOKEN']}"
        if self.done and self.etag:
            headers |= {"Range": f"bytes={self.done}-", "If-Range": self.etag}
        try:
            response = gate.open_url(self.file.url, purpose="pull", payload_kind="a model's name", headers=headers)
        except urllib.error.HTTPError as fault:
            with fault:
                raise self._refused(fault.code, fault.headers) from None
        with response:
            self._start(response)
            with open(self.part, "r+b" if self.done else "wb") as out:
                out.seek(self.done)
                while chunk := response.read(CHUNK):
                    out.write(chunk)
                    self.digest.update(chunk)
                    self.done += len(chunk)
                    self.progress(self.file.file, self.done, self.total or 0)
        if self.total is not None and self.done < self.total:
            raise _Broken(f"the connection broke at {self.done} of {self.total} bytes")
        if self.total is not None and self.done > self.total:
            raise PullError(f"{self.file.name} is longer than the {self.total} bytes the hub names: nothing was kept")

    def _start(self, response: gate.Response) -> None:
        """Take size and hash from an answer's headers; begin anew when it is not the rest of what we have."""
        length = _number(response.headers.get("Content-Length"))
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if response.status != 206 or span is None or int(span[1]) != self.done:
            if response.status == 206:
                self.etag = None  # the rest cannot be had from this server: the next try asks for the whole
                self.done = 0
                raise _Broken("the answer is another part of the file than was asked for")
            self.done, self.digest = 0, hashlib.sha256()
        tag = response.headers.get("ETag")
        self.etag = tag if tag and not tag.startswith("W/") else None
        linked = _number(response.header("X-Linked-Size"))
        self.total = linked if linked is not None else (self.done + length if length is not None else None)
        hub_tag = (response.header("X-Linked-ETag") or "").strip('"').lower()
        self.sha256 = hub_tag if re.fullmatch("[0-9a-f]{64}", hub_tag) else None
        if self.total is not None:
            need_space(self.part.parent, self.total - self.done)

    def _refused(self, status: int, headers: Message) -> Exception:
        name = self.file.name
        if status in (401, 403):
            return PullError(f"the hub refuses {name} ({status}): accept the model's terms there and set HF_TOKEN")
        if status == 404:
            return Absent(f"the hub has no {name} (404): check the spelling of ORG, REPO and FILE")
        if status == 416:
            self.etag, self.done = None, 0
            return _Broken("the hub's file has changed")
        if status in (408, 425, 429) or status >= 500:
            return _Broken(f"HTTP {status}", _number(headers.get("Retry-After")))
        return PullError(f"the hub answers {name} with HTTP {status}: nothing was kept; check the name")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
