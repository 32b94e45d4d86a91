"""Judge how a model of signals forecasts, beside the seasonal naive forecast.

    genmote eval signal forecast --train monday.csv --test tuesday.csv --season 24 --horizon 24
    genmote eval signal forecast --train days/ --test more/ --model days.gguf --svg forecast.svg --json

From origins every --stride rows of each recording of --test, --horizon rows are forecast out of the --context rows
before. MASE: the median's error over what the seasonal naive forecast is off, on average, one season ahead in all that
came before. CRPS: twice the pinball loss, mean over the quantiles 0.1 to 0.9, over the mean size of what came; scaled:
over the same scale as MASE. covered: of what came, in the 80% interval.
"""

from __future__ import annotations

from collections.abc import Iterable

from genmote.cli._output import Bar, Output
from genmote.cli.eval.signal._shared import Trained, both, check, figure, most, tell
from genmote.spec import dataclass, setting


@dataclass(frozen=True, kw_only=True)
class Settings(Trained):
    season: int = setting("rows of a season, such as 24 for hours of a day", default=1)
    context: int = setting("rows before the origin that are seen", default=128)
    horizon: int = setting("rows that are forecast", default=32)
    stride: int | None = setting("rows from origin to origin (default: the horizon)", default=None)
    windows: int = setting("origins at most, evenly spread", default=200)
    paths: int = setting("ways that the model draws, of which its quantiles are", default=32)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        stride = 1 if self.stride is None else self.stride
        yield from most({"season": self.season, "context": self.context, "horizon": self.horizon, "stride": stride})
        yield from most({"windows": self.windows, "paths": self.paths})
        if self.season > self.context:
            yield f"season={self.season}: the seasonal naive forecast must see one; use a larger context={self.context}"


def run(settings: Settings, out: Output) -> None:
    from genmote.generator.evaluate import forecast

    check(settings)
    notes: list[str] = []
    with Bar(unit_bytes=False, late=True) as bar:
        train, test, make = both(settings, notes, bar)
        result = forecast.evaluate(
            train,
            test,
            make,
            season=settings.season,
            context=settings.context,
            horizon=settings.horizon,
            stride=settings.stride or settings.horizon,
            most=settings.windows,
            paths=settings.paths,
            seed=settings.seed,
            progress=bar,
        )
    table = [["", "MASE", "CRPS", "scaled", "covered", "ms"]]
    for name, found in result.values["sides"].items():
        figures = [figure(found[key]) for key in ("mase", "crps", "crps_scaled", "coverage")]
        table.append([name, *figures, figure(1e3 * found["seconds"], 1)])
    if unscaled := result.values["unscaled"]:
        notes.append(f"{unscaled} channels of windows never changed before the origin: not in MASE")
    tell(settings, "forecast", result, notes, out, table)
