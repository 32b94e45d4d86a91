"""Whether what is said of a signal may be taken for a diagnosis, and what is said then."""

from __future__ import annotations

from collections.abc import Sequence

from genmote.signals.kinds import Series, Signal

NOTICE = "This is no diagnosis: it was written by a small model, and a physician has to look at the recording."
KINDS = ("ecg", "pulse", "blood-pressure", "spo2", "heart-rate")  # modalities of which a physician judges
LEADS = frozenset("I II III aVR aVL aVF AVR AVL AVF V1 V2 V3 V4 V5 V6 MLII MLI PPG PLETH SpO2 ABP ART".split())


# What the channels of such modalities are called (genmote/signals/modalities).
CHANNELS = frozenset(("ecg", "reflected light", "arterial pressure", "oxygen saturation", "heart rate"))


def of_health(signals: Sequence[Signal]) -> bool:
    """Whether one of them is, by its modality, or by the names of its channels where it has none."""
    return any(_is(signal) for signal in signals)


def _is(signal: Signal) -> bool:
    told = signal.labels.get("modality")
    if told is not None:
        return told in KINDS
    if not isinstance(signal, Series):
        return False
    return any(name in LEADS or name.lower() in CHANNELS for name in signal.channels)
