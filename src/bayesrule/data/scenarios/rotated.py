"""Rotated: all classes in every task, the images turned by another angle each time.

Task t is turned counter-clockwise by angle_t about the image's centre, with bilinear interpolation;
what comes in from outside has the value of a black pixel (0 before scaling).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bayesrule.data.bundle import DataBundle
from bayesrule.data.scenarios.base import Scenario, TaskRule
from bayesrule.data.streams import Incremental
from bayesrule.errors import ConfigError, Unsupported

__all__ = ["Rotated", "Rotation"]


class Rotation:
    """Turns images counter-clockwise.

    Args:
        degrees: The angle.
        outside: Value of a pixel outside the image, broadcast over (C, 1, 1).
    """

    def __init__(self, degrees: float, outside: Tensor) -> None:
        self.degrees, self.outside = degrees, outside

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """Return the turned images, of the same shape."""
        a = math.radians(self.degrees)
        turn = torch.tensor([[math.cos(a), -math.sin(a), 0.0], [math.sin(a), math.cos(a), 0.0]])
        height, width = x_BCHW.shape[-2:]
        if height != width:  # affine_grid counts in half widths and half heights
            turn[0, 1] *= height / width
            turn[1, 0] *= width / height
        theta = turn.to(x_BCHW).expand(len(x_BCHW), 2, 3)
        grid = F.affine_grid(theta, list(x_BCHW.shape), align_corners=False)
        outside = self.outside.to(x_BCHW)
        return F.grid_sample(x_BCHW - outside, grid, align_corners=False) + outside


class Rotated(Scenario):
    """T rotations of one set of images.

    Args:
        n_tasks: T; with `angles`, their number or None.
        incremental: ``domain``; also ``task`` or ``class`` (labels count anew in every task).
        angles: Degrees of each task; empty: evenly spaced from 0 to `max_angle`.
        max_angle: Degrees of the last task.
        online: Items of a piece, or None.

    Raises:
        ConfigError: If `n_tasks` is not the number of `angles`.
    """

    name = "rotated"

    def __init__(
        self,
        *,
        n_tasks: int | None = 5,
        incremental: Incremental = "domain",
        angles: Sequence[float] = (),
        max_angle: float = 180.0,
        online: int | None = None,
    ) -> None:
        super().__init__(n_tasks=n_tasks, incremental=incremental, online=online)
        if angles and n_tasks not in (None, len(angles)):
            raise ConfigError(
                f"scenario.n_tasks={n_tasks} but scenario.angles has {len(angles)}: use "
                "scenario.n_tasks=null"
            )
        if not angles and n_tasks is None:
            raise ConfigError("scenario.n_tasks=null: give scenario.angles, or a number of tasks")
        count = n_tasks or len(angles)
        self.angles = list(angles) or [max_angle * t / max(1, count - 1) for t in range(count)]

    def counts(self, n_classes: int) -> tuple[int, int]:
        """Return T and the set's number of classes."""
        return len(self.angles), n_classes

    def rules(self, data: DataBundle, seed: int) -> list[TaskRule]:
        """Return the rotation of each task.

        Raises:
            Unsupported: If the inputs are not images.
        """
        if len(data.input_shape) != 3:
            raise Unsupported(
                f"scenario=rotated turns images, and inputs of data={data.name} have the shape "
                f"{tuple(data.input_shape)}: choose a set of images"
            )
        classes, outside = tuple(range(data.n_outputs)), _black(data)
        return [
            TaskRule(classes, Rotation(angle, outside) if angle else None, f"{angle:g} degrees")
            for angle in self.angles
        ]


def _black(data: DataBundle) -> Tensor:
    """Return the scaled value of a black pixel, of shape (C, 1, 1) or ()."""
    mean, std = (torch.as_tensor(data.scaling[key]) for key in ("mean", "std"))
    black = -mean / std
    return black.view(-1, 1, 1).float() if black.ndim else black.float()
