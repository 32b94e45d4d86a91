"""A model's whole folder from the Hugging Face hub, to be converted: ``hf:ORG/REPO``.

The hub's file address is all that is used (see `hub`), so files are asked for by their usual names; one that the hub
does not have is no fault unless nothing goes without it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from genmote import home
from genmote.errors import ModelNameError, PullError
from genmote.fetch import Progress, quiet, staging
from genmote.models import hub, safetensors

CONFIG = "config.json"
# What a conversion reads besides config.json and the weights.
OPTIONAL = (
    "README.md generation_config.json tokenizer.json tokenizer_config.json tokenizer.model special_tokens_map.json "
    "added_tokens.json vocab.json merges.txt chat_template.jinja chat_template.json"
).split()


def is_folder(name: str) -> bool:
    """Whether a name is ``hf:ORG/REPO``.

    >>> is_folder("hf:HuggingFaceTB/SmolLM2-135M"), is_folder("hf:a/b/c.gguf"), is_folder("a/b")
    (True, False, False)
    """
    return re.fullmatch(r"hf:[\w.-]+/[\w.-]+", name, re.ASCII) is not None


def pull(name: str, progress: Progress = quiet) -> Path:
    """The folder of ``hf:ORG/REPO``, fetched if it is not here. Raises `PullError`; nothing half is left then."""
    org, repo = name.removeprefix("hf:").split("/")
    if set(org) == {"."} or set(repo) == {"."}:
        raise ModelNameError(f"{name!r} is no hub folder: wanted hf:ORG/REPO")
    target = home.models_dir() / "hf" / org / repo / "folder"
    if target.is_dir():
        return target
    home.check_layout()
    with staging(target, progress) as staged:
        if target.is_dir():
            return target  # the process that we waited for has fetched it
        whole = staged / "whole"
        whole.mkdir()

        def fetch(file: str) -> bool:
            try:
                hub.Download(hub.HubFile(org, repo, file), whole / file, progress).run()
            except hub.Absent:
                return False
            return True

        if not fetch(CONFIG):
            raise PullError(f"the hub has no {CONFIG} in {name}: check the spelling of ORG and REPO")
        for file in OPTIONAL:
            fetch(file)
        if fetch(safetensors.INDEX):
            for shard in safetensors.shards(whole / safetensors.INDEX):
                if not fetch(shard):
                    raise PullError(f"the hub has no {shard} in {name}, which its index names: nothing was kept")
        elif not fetch(safetensors.SINGLE):
            raise PullError(f"{name} has no weights as safetensors: take a model or a revision that does")
        for path in whole.iterdir():
            with open(path, "rb") as file_on_disk:
                os.fsync(file_on_disk.fileno())
        os.replace(whole, target)
        home.sync_folder(target.parent)
    return target
