"""Masked video modelling with an encoder that gives one vector."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.models.places import CODE, place_code
from avssl.objectives.reconstruction import draw_units, masked_error, normalized

SIDE = 4  # pixels of a cube's target, along height and width


class VideoReconstruction(nn.Module):
    """Predicts masked cubes of the frames from the feature vector, by a small MLP that is told the cube's place.

    A masked cube has one learnable colour. Its target is the cube averaged to 1 frame of 4 x 4 pixels: a vector of
    the whole clip cannot hold more detail. Pixels and frames beyond the last whole cube are never masked.

    Args:
        width: Size V of the feature vector.
        share: Share of the cubes that is masked.
        normalize: Normalize each cube's target.
        cube: Frames, height and width of a cube. As many frames as the clip has make tubes, which still scenes need:
            there, a masked cube can be seen at another time.
        hidden: Width of the MLP.
    """

    def __init__(
        self, width: int, share: float, normalize: bool, cube: Sequence[int] = (2, 16, 16), hidden: int = 256
    ) -> None:
        super().__init__()
        if len(cube) != 3 or min(cube) < 1 or cube[1] % SIDE or cube[2] % SIDE:
            raise ValueError(
                f"masked: cube must be at least 1 frame, and a height and a width that are multiples of {SIDE}, "
                f"got {list(cube)}"
            )
        if hidden < 1:
            raise ValueError(f"masked: hidden must be at least 1, got {hidden}")
        self.cube, self.share, self.normalize = tuple(cube), share, normalize
        self.color = nn.Parameter(torch.full((3, 1, 1, 1), 0.5))
        self.feature = nn.Linear(width, hidden)
        self.place = nn.Linear(3 * CODE, hidden, bias=False)
        self.decode = nn.Sequential(nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 3 * SIDE * SIDE))

    def no_weight_decay(self) -> set[str]:
        """The colour is an input, not a weight."""
        return {"color"}

    def forward(self, encoder: nn.Module, frames: Tensor) -> Tensor:
        """``frames`` (b, 3, T, H, W) in [0, 1] -> (b, 3), see :func:`~avssl.objectives.reconstruction.masked_error`.

        Raises:
            ValueError: when the frames hold no whole cube.
        """
        grid = tuple(size // side for size, side in zip(frames.shape[2:], self.cube, strict=True))
        if not all(grid):
            raise ValueError(f"masked: cube {list(self.cube)} is larger than the clip of {list(frames.shape[2:])}")
        frames = frames.to(torch.promote_types(frames.dtype, self.color.dtype))
        flat = draw_units(frames.new_empty(len(frames), grid[0] * grid[1], grid[2]), self.share, (1, 1))
        mask = flat.unflatten(1, grid[:2])
        features = self.feature(encoder(torch.where(self._pixels(mask, frames), self.color, frames)))
        places = self.place(place_code(grid, frames))
        prediction = self.decode(features[:, None, None, None] + places)
        target = self._targets(frames, grid)
        exists = torch.ones_like(target[:1])
        if self.normalize:
            target = normalized(target, exists)
        return masked_error(prediction, target, mask, exists)

    def _pixels(self, mask: Tensor, frames: Tensor) -> Tensor:
        """Cubes (b, t, h, w) -> the pixels that they cover (b, 1, T, H, W)."""
        for axis, side in enumerate(self.cube, start=1):
            mask = mask.repeat_interleave(side, dim=axis)
        beyond = [(0, size - covered) for size, covered in zip(frames.shape[:1:-1], mask.shape[:0:-1], strict=True)]
        return F.pad(mask, [count for pair in beyond for count in pair])[:, None]

    def _targets(self, frames: Tensor, grid: tuple[int, ...]) -> Tensor:
        """(b, 3, T, H, W) -> averaged cubes (b, t, h, w, 3 * 4 * 4), the channel being the slowest index."""
        step = (self.cube[0], self.cube[1] // SIDE, self.cube[2] // SIDE)
        small = F.avg_pool3d(frames, step)[:, :, : grid[0], : grid[1] * SIDE, : grid[2] * SIDE]
        cubes = small.unflatten(4, (grid[2], SIDE)).unflatten(3, (grid[1], SIDE))  # (b, 3, t, h, 4, w, 4)
        return cubes.permute(0, 2, 3, 5, 1, 4, 6).flatten(4)
