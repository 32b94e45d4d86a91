"""MiniRocket with a ridge classifier (Dempster et al. 2021, arXiv 2012.08791), by aeon, in an environment of its own.

    python others.py IN.npz OUT.npz

Windows `train` (N, C, T) of labels `labels` (N,), and others, `test` (M, C, T); gives `told` (M,), their labels.
"""

import sys

import numpy as np
from aeon.classification.convolution_based import MiniRocketClassifier


def main(source: str, target: str) -> None:
    given = np.load(source)
    model = MiniRocketClassifier(random_state=0, n_jobs=1).fit(given["train"], given["labels"])
    np.savez(target, told=model.predict(given["test"]).astype(str))


if __name__ == "__main__":
    main(*sys.argv[1:])
