"""What is said of files of recordings on the command line; without NumPy, as the list of verbs is made of it."""

from __future__ import annotations

from collections.abc import Iterable

from genmote.spec import dataclass, setting


@dataclass(frozen=True, kw_only=True)
class Said:
    """What is said of files beside what they say themselves."""

    group: str | None = setting(
        "of a table, the column that tells which recording a row is of, such as a user", default=None
    )
    sample_rate: float = setting("samples a second, whatever the file says of times (0: as it says)", default=0.0)
    names: tuple[str, ...] = setting("names of the channels, in their order", default=(), many=True)

    def faults(self) -> Iterable[str]:
        if not 0 <= self.sample_rate < 1e9:
            yield f"sample_rate={self.sample_rate}: use 0 (as the file says) or the samples of a second"
        if len(set(self.names)) < len(self.names):
            yield f"names={self.names}: use each once"
