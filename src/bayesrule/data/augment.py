"""Training augmentation whose draw depends on (seed, epoch, item) only.

An item looks the same in an epoch whichever batch, rank or worker process it is in, so runs resume
bit-equal and several processes agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bayesrule.seeding import child_seed, numpy_generator

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["CropFlip", "center_crop", "item_bits", "random_resized_crop"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SCALE = (0.08, 1.0)  # part of the image's area, Szegedy et al. (2015)
_RATIO = (3.0 / 4.0, 4.0 / 3.0)
_TRIES = 10


def item_bits(seed: int, items: np.ndarray) -> np.ndarray:
    """Return 64 random bits for each item: output number `item` of the SplitMix64 stream of `seed`.

    A counter-based generator (Steele, Lea & Flood, 2014): any item's bits are had at once, in any
    order.

    Args:
        seed: Seed of the stream, 0 <= seed < 2**64.
        items: Item numbers, shape (B,).

    Returns:
        uint64, shape (B,).
    """
    z = np.uint64(seed) + (items.astype(np.uint64) + np.uint64(1)) * _GOLDEN  # wraps mod 2**64
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@dataclass(frozen=True)
class CropFlip:
    """Zero-pad by `pad`, crop back at a random place, flip left-right with probability 1/2.

    Works on raw pixels of a whole batch at once, before scaling (so the border is black).

    Attributes:
        seed: Seed of the augmentation stream.
        pad: Pixels added at each side.
    """

    seed: int
    pad: int = 4

    def __call__(self, pixels_BCHW: np.ndarray, items: np.ndarray, epoch: int) -> np.ndarray:
        """Return augmented pixels of the same shape.

        Args:
            pixels_BCHW: Raw pixels.
            items: Numbers that identify the items, shape (B,).
            epoch: The epoch.
        """
        height, width = pixels_BCHW.shape[2:]
        bits = item_bits(child_seed(self.seed, "epoch", epoch), items)
        places = np.uint64(2 * self.pad + 1)
        low = np.uint64(0xFFFFFFFF)
        top = ((bits & low) * places >> np.uint64(32)).astype(np.int64)
        left = (((bits >> np.uint64(32)) & np.uint64(0x7FFFFFFF)) * places >> np.uint64(31)).astype(
            np.int64
        )
        flip = (bits >> np.uint64(63)).astype(bool)
        columns = np.arange(width)
        columns_BW = left[:, None] + np.where(flip[:, None], columns[::-1], columns)
        rows_BH = top[:, None] + np.arange(height)
        border = ((0, 0), (0, 0), (self.pad, self.pad), (self.pad, self.pad))
        padded = np.pad(pixels_BCHW, border)
        batch = np.arange(len(items))[:, None, None]
        # the sliced channel axis comes last after indexing three axes: move it back
        cut_BHWC = padded[batch, :, rows_BH[:, :, None], columns_BW[:, None, :]]
        return np.ascontiguousarray(cut_BHWC.transpose(0, 3, 1, 2))


def random_resized_crop(image: Image, size: int, *, seed: int, epoch: int, item: int) -> Image:
    """Cut a random area and aspect ratio, resize it to `size`, flip with probability 1/2.

    The recipe of ImageNet training: area 8 to 100 %, ratio 3/4 to 4/3 (log-uniform), ten tries and
    then the largest centred cut of an allowed ratio.

    Args:
        image: A PIL image.
        size: Height and width of the result.
        seed: Seed of the augmentation stream.
        epoch: The epoch.
        item: Number that identifies the item.
    """
    from PIL import Image as Pillow

    rng = numpy_generator(seed, "crop", epoch, item)
    width, height = image.size
    box = None
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*_SCALE)
        ratio = np.exp(rng.uniform(*np.log(_RATIO)))
        w, h = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            box = (left, top, left + w, top + h)
            break
    if box is None:
        w = min(width, round(height * _RATIO[1]))
        h = min(height, round(width / _RATIO[0]))
        left, top = (width - w) // 2, (height - h) // 2
        box = (left, top, left + w, top + h)
    out = image.resize((size, size), Pillow.Resampling.BILINEAR, box=box)
    return out.transpose(Pillow.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else out


def center_crop(image: Image, size: int) -> Image:
    """Resize the shorter side to 8/7 of `size` and cut the centre, size x size (ImageNet test)."""
    from PIL import Image as Pillow

    width, height = image.size
    scale = size * 8 / 7 / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    image = image.resize((width, height), Pillow.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
