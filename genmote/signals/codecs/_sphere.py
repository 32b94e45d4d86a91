"""Clouds of points as range images: what a spinning lidar sees, by elevation and azimuth.

A cell of the image is a direction: rows from the highest elevation to the lowest, columns from straight ahead (x) to
the left (y) and round. It holds the nearest point in that direction; further ones are lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sphere:
    """A grid of `rows` x `columns` directions; elevations in radians."""

    rows: int
    columns: int
    lowest: float
    highest: float

    @property
    def half_cell(self) -> float:
        """The angle in radians that no point of a cell is further off than from the cell's middle."""
        return (self.highest - self.lowest) / self.rows / 2 + np.pi / self.columns

    def image(self, points: NDArray[Any], others: NDArray[Any]) -> tuple[NDArray[np.float64], int, int]:
        """Range and `others` (P, K) of points (P, 3) as an image (rows, columns, 1 + K), NaN where no point is; how
        many points are in no cell (not finite, or too high or low), and how many behind others."""
        points = points.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            ranges, elevations = spherical(points)
            azimuths = np.arctan2(points[:, 1], points[:, 0]) % (2 * np.pi)
            inside = np.isfinite(ranges) & (elevations >= self.lowest) & (elevations <= self.highest)
        places = np.flatnonzero(inside)
        tall = (self.highest - self.lowest) or 1.0
        row = np.minimum(((self.highest - elevations[places]) / tall * self.rows).astype(np.int64), self.rows - 1)
        column = np.minimum((azimuths[places] / (2 * np.pi) * self.columns).astype(np.int64), self.columns - 1)
        cell = row * self.columns + column
        order = np.lexsort((ranges[places], cell))  # the nearest of each cell first
        first = np.ones(len(order), bool)
        first[1:] = np.diff(cell[order]) > 0
        kept = places[order[first]]
        image = np.full((self.rows * self.columns, 1 + others.shape[1]), np.nan)
        image[cell[order[first]]] = np.concatenate([ranges[kept, None], others[kept]], axis=1)
        return image.reshape(self.rows, self.columns, -1), len(points) - len(places), len(places) - len(kept)

    def points(self, image: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """Points (P, 3) in the middle of the cells that hold a range, and the image's other channels (P, K)."""
        row, column = np.nonzero(~np.isnan(image[:, :, 0]))
        found = image[row, column]
        elevation = self.highest - (row + 0.5) / self.rows * (self.highest - self.lowest)
        azimuth = (column + 0.5) / self.columns * 2 * np.pi
        flat = found[:, 0] * np.cos(elevation)
        points = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), found[:, 0] * np.sin(elevation)], axis=1)
        return points, found[:, 1:]


def spherical(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Range and elevation in radians of points (P, 3)."""
    flat = np.hypot(points[:, 0], points[:, 1])
    return np.hypot(flat, points[:, 2]), np.arctan2(points[:, 2], flat)
