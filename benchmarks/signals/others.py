"""The peers of signals' models, run in an environment of their own: numbers in, numbers out, nothing of genmote.

    python others.py forecast|detect|generate IN.npz OUT.npz

`forecast`: histories `h0`, `h1`, … (T,), `seasons` (N,) and `steps`; gives quantiles (N, 9, steps) of each peer, and
the seconds that it took. `detect`: features `train` (N, F) and `test` (M, F); gives scores (M,) of each peer.
`generate`: windows `windows` (N, T, C), their `labels` (N,) and `seed`; gives windows (N, T, C) of these labels.
"""

import sys
import time
import warnings

import numpy as np

LEVELS = [20, 40, 60, 80]  # intervals whose ends, with the mean, are the quantiles 0.1 to 0.9


def forecast(given: dict) -> dict:
    from statsforecast.models import AutoETS, DynamicOptimizedTheta

    peers = {
        "AutoETS": lambda season: AutoETS(season_length=season if season <= 24 else 1),
        "Theta": lambda season: DynamicOptimizedTheta(season_length=season),
    }
    steps, seasons = int(given["steps"]), given["seasons"].tolist()
    found = {}
    for name, make in peers.items():
        began, quantiles = time.perf_counter(), []
        for n, season in enumerate(seasons):
            history = given[f"h{n}"].astype(np.float64)
            quantiles.append(one(make, history, season, steps))
        found[name] = np.stack(quantiles)
        found[f"{name} seconds"] = np.array(time.perf_counter() - began)
    return found


def one(make, history: np.ndarray, season: int, steps: int) -> np.ndarray:
    if history.std() == 0:  # nothing to fit: it goes on as it is
        return np.full((9, steps), history[-1])
    last = None
    for each in dict.fromkeys((season, 1)):  # a season that cannot be fitted is left out
        try:
            made = make(each).forecast(y=history, h=steps, level=LEVELS)
        except Exception as fault:
            last = fault
            continue
        low = [made[f"lo-{level}"] for level in LEVELS[::-1]]
        high = [made[f"hi-{level}"] for level in LEVELS]
        found = np.stack([*low, made["mean"], *high])
        if np.isfinite(found).all():
            return found
    raise SystemExit(f"no forecast: {last}")


def detect(given: dict) -> dict:
    from pyod.models.ecod import ECOD
    from pyod.models.iforest import IForest
    from pyod.models.knn import KNN
    from pyod.models.lof import LOF

    train, test = given["train"], given["test"]
    spread = train.std(axis=0)
    mean, spread = train.mean(axis=0), np.where(spread > 0, spread, 1.0)
    train, test = (train - mean) / spread, (test - mean) / spread
    peers = {
        "IsolationForest": IForest(n_estimators=200, random_state=int(given["seed"])),
        "ECOD": ECOD(),
        "KNN": KNN(n_neighbors=5),
        "LOF": LOF(n_neighbors=20, novelty=True),
    }
    found = {}
    for name, peer in peers.items():
        began = time.perf_counter()
        peer.fit(train)
        found[name] = peer.decision_function(test)
        found[f"{name} seconds"] = np.array(time.perf_counter() - began)
    return found


def generate(given: dict) -> dict:
    """SDV's PAR (Zhang et al. 2022, arXiv 2207.14406) with its own settings, by its library DeepEcho."""
    import torch
    from deepecho import PARModel

    torch.manual_seed(int(given["seed"]))
    windows, labels = given["windows"].astype(np.float64), given["labels"].tolist()
    began, model = time.perf_counter(), PARModel(cuda=False, verbose=False)
    rows = [
        {"context": [label], "data": [channel.tolist() for channel in window.T]}
        for window, label in zip(windows, labels, strict=True)
    ]
    model.fit_sequences(rows, ["categorical"], ["continuous"] * windows.shape[2])
    made = [np.array(model.sample_sequence([label], windows.shape[1]), np.float64).T for label in labels]
    return {"SDV PAR": np.stack(made), "SDV PAR seconds": np.array(time.perf_counter() - began)}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    what, source, target = sys.argv[1:]
    given = dict(np.load(source))
    np.savez(target, **{"forecast": forecast, "detect": detect, "generate": generate}[what](given))
