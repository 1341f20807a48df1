"""Small functions that several objectives share."""

import torch
import torch.nn.functional as F
from torch import Tensor


def precise(rows: Tensor) -> Tensor:
    """``rows`` in float32 or better: half precision leaves a similarity about 3 digits."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def unit(rows: Tensor) -> Tensor:
    """(N, D) with L2-normalized rows, in float32 or better."""
    return F.normalize(precise(rows), dim=-1)
