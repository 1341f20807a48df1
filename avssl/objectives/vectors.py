"""Small functions that several objectives share."""

import torch
import torch.nn.functional as F
from torch import Tensor


def unit(rows: Tensor) -> Tensor:
    """(N, D) with L2-normalized rows, in float32 or better: half precision leaves a similarity about 3 digits."""
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)
