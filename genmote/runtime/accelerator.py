"""A model on an accelerator: the torch op set on a device of PyTorch, weights in tiers where they do not all fit.

`Engine.load(model, accelerator="cuda", device_memory="2GB", host_memory="8GB")`. Without a limit, CUDA's is most of
what is free there, and the host's is half of what is available. Where there is no CUDA, a memory limit alone runs the
same path on the processor, which then stands in for an accelerator: the results are right, the times are none of a GPU.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genmote import ops as opsets
from genmote.device.sizes import parse_bytes
from genmote.errors import OpsError, SpecError

if TYPE_CHECKING:
    from genmote.models.gguf import ModelFile
    from genmote.models.tiers import TieredLoader
    from genmote.ops.protocol import Ops

_FREE_SHARE = 0.85  # of the device's free memory: keys, values and what computing takes come beside


@dataclass(frozen=True)
class TierReport:
    """Where an engine's weights lie, and what streaming them has taken so far."""

    loader: TieredLoader
    device: str

    def values(self) -> dict[str, Any]:
        place, tiers = self.loader.placement, self.loader.tiers
        found: dict[str, Any] = {
            "accelerator": self.device,
            "stand_in": self.device == "cpu",
            "device_layers": len(place.device),
            "ram_layers": len(place.ram),
            "disk_layers": len(place.disk),
            "device_bytes": place.device_bytes,
            "ram_bytes": place.ram_bytes,
            "ring_bytes": place.ring_bytes,
        }
        if tiers is not None:
            counts = tiers.counts
            found |= {
                "streamed_layers": counts.layers,
                "copied_bytes": counts.copied_bytes,
                "disk_read_bytes": counts.disk_bytes,
                "demanded_layers": counts.demanded,
                "waited_s": round(counts.waited_s, 4),
            }
        return found

    def __str__(self) -> str:
        place, tiers = self.loader.placement, self.loader.tiers
        where = "on the processor, which stands in for an accelerator" if self.device == "cpu" else f"on {self.device}"
        told = (
            f"layers {where}: {len(place.device)} there ({place.device_bytes / 1e6:.0f} MB with all that is fixed), "
            f"{len(place.ram)} in RAM ({place.ram_bytes / 1e6:.0f} MB), {len(place.disk)} in the file"
        )
        if tiers is not None:
            told += f"; {tiers.counts.copied_bytes / 1e6:.0f} MB were copied, {tiers.counts.waited_s:.2f} s waited for"
        return told


@dataclass(frozen=True)
class Accelerated:
    """What was asked for, checked."""

    device: str
    device_bytes: int | None
    host_bytes: int | None

    def ops(self) -> Ops:
        """The op set on the device. Raises OpsError where PyTorch or the device is not here."""
        return opsets.load("torch", device=self.device)

    def loader(self, model: ModelFile, ops: Any) -> TieredLoader:
        """How the model's weights are loaded. Raises BudgetError where the memory is too small."""
        from genmote.device.probe import available_bytes
        from genmote.models.tiers import TieredLoader

        device_bytes, host_bytes = self.device_bytes, self.host_bytes
        if device_bytes is None and self.device.startswith("cuda"):
            import torch

            device_bytes = int(_FREE_SHARE * torch.cuda.mem_get_info(ops.device)[0])
        if host_bytes is None:
            host_bytes = (available_bytes() or 1 << 62) // 2
        return TieredLoader(model, ops, device_bytes, host_bytes)

    def told(self, loader: Any) -> TierReport:
        return TierReport(loader, self.device)


def accelerated(
    ops: str | None, isa: str | None, device: str | None, device_memory: int | str | None, host_memory: int | str | None
) -> Accelerated | None:
    """What the settings ask for; None where they ask for no accelerator. Raises OpsError where another op set or an
    instruction set was asked for too, SpecError for what is no amount of memory."""
    if device is None and device_memory is None and host_memory is None:
        return None
    named = ops or os.environ.get("GENMOTE_OPS") or "torch"
    if named != "torch":
        raise OpsError(f"ops={named!r}: only the torch op set computes on an accelerator; use torch, or leave it out")
    if isa is not None:
        raise OpsError(f"isa={isa!r}: an accelerator has no such instruction set; leave isa out")
    device_bytes, host_bytes = _bytes("device_memory", device_memory), _bytes("host_memory", host_memory)
    if device is None:
        device = "cuda" if _cuda() else "cpu"
    return Accelerated(device, device_bytes, host_bytes)


def _bytes(name: str, value: int | str | None) -> int | None:
    if isinstance(value, str):
        return parse_bytes(value, what=name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise SpecError(f"{name}={value!r}: wanted bytes, or an amount such as 2GB")
    return value


def _cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False  # the op set tells what is missing
    import torch

    return bool(torch.cuda.is_available())
