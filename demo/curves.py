"""The logged errors as curves."""

from __future__ import annotations

import csv
from pathlib import Path

KINDS = ("error", "plain", "recoloured", "pair", "small")


def curves(folder: Path) -> Path:
    """Draw every ``<stage>.csv`` in ``folder`` into ``curves.png`` there.

    Raises:
        ImportError: matplotlib, which nothing else needs, is not installed.
    """
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    stages = [name for name in ("vae", "denoise64", "denoise128") if _log(folder, name).exists()]
    columns = max(1, len(stages))  # a very short training has logged nothing yet
    figure, axes = plt.subplots(1, columns, figsize=(6 * columns, 4), squeeze=False)
    for stage, axis in zip(stages, axes[0], strict=False):
        with _log(folder, stage).open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for kind in KINDS:
            known = [row for row in rows if row.get(kind)]
            if known:
                minutes = [float(row["seconds"]) / 60 for row in known]
                axis.plot(minutes, [float(row[kind]) for row in known], label=kind)
        axis.set(title=stage, xlabel="minutes", ylabel="mean squared error", yscale="log")
        axis.grid(visible=True, which="both", alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(folder / "curves.png", dpi=80)
    plt.close(figure)
    return folder / "curves.png"


def _log(folder: Path, stage: str) -> Path:
    return folder / f"{stage}.csv"
