"""The blocks of ``mast.model`` and ``mast.ast``, faster: classes that take the place of the plain ones.

An object changes its class only (:func:`swap`); parameters, hooks and names stay. On a CPU the branches of a block
run fused (``mast.fast.cpu``), where the compiled kernels fit. Else they run operator by operator, with relative
positions inside fused attention (``mast.fast.widened``), with cheap values computed again in the backward pass
(``mast.fast.recompute``), and with Triton kernels for attention and pooling on a GPU (``mast.fast.cuda``).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mast.ast import AstBlock
from mast.fast import cuda
from mast.fast.cpu import fused
from mast.fast.cuda.half import weights_in_half
from mast.fast.observers import observed, transformed
from mast.fast.recompute import recomputed
from mast.fast.widened import attention, diagonals, vectors
from mast.model import NORM_EPS, AddBranch, Block, DepthwisePool, Mlp, PoolingAttention, RelativeTable, pooled

# Blocks up to this many channels compute the hidden layer of their MLP again in the backward pass: they have the most
# tokens, so it is large, and the fewest products per value, so it is cheap.
CHEAP_DIM = 192


class FastAttention(PoolingAttention):
    """Attention with relative positions inside a fused kernel."""

    kernels = True

    def forward(self, x: Tensor) -> Tensor:
        """See ``PoolingAttention``."""
        pooled = self._pooled_by_kernels(x) if self.kernels and x.is_cuda else None
        q, k, v = pooled or self._pooled(x)
        r_freq = vectors(self.relative_freq, q.shape[1], k.shape[1]).to(q.dtype)
        r_time = vectors(self.relative_time, q.shape[2], k.shape[2]).to(q.dtype)
        # In this order the sum has the layout of q.
        out = q + attention(q, k, v, r_freq, r_time, kernels=self.kernels)
        return self.proj(out.flatten(3))

    def _pooled_by_kernels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Queries, keys and values out of one product; None where kernels do not serve it."""
        pools = (self.pool_q, self.pool_k, self.pool_v)
        norms = [pool.norm for pool in pools]
        whole = all(is_unmodified(pool, DepthwisePool) for pool in pools) and self.pool_k.stride == self.pool_v.stride
        if not whole or not all(
            is_unmodified(n, nn.LayerNorm) and n.eps == NORM_EPS and n.bias is not None for n in norms
        ):
            return None
        qkv = self.qkv(x)
        if not cuda.usable(qkv, self.pool_q.weight.shape[0]):
            return None
        parameters = [p for pool, n in zip(pools, norms, strict=True) for p in (pool.weight, n.weight, n.bias)]
        return cuda.pool(qkv, parameters, self.heads, list(self.pool_q.stride), list(self.pool_k.stride), NORM_EPS)[:3]

    def _pooled(self, x: Tensor) -> tuple[Tensor, ...]:
        if is_unmodified(self.qkv, nn.Linear) and self.qkv.bias is not None:
            # Three products rather than one: their results are contiguous, which the convolutions need.
            parts = [F.linear(x, *of) for of in zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)]
        else:
            parts = [part.contiguous() for part in self.qkv(x).chunk(3, dim=-1)]
        pools = (self.pool_q, self.pool_k, self.pool_v)
        return tuple(pool(part, self.heads) for pool, part in zip(pools, parts, strict=True))

    def fused(self, x: Tensor, norm: nn.LayerNorm, residual: bool = False, shares: Tensor | None = None) -> Tensor:
        """``forward(norm(x))`` fused; with ``residual``, ``x + shares * forward(norm(x))``."""
        settings = fused.AttentionSettings(self.heads, self.pool_q.stride, self.pool_k.stride, NORM_EPS, residual)
        q_grid, k_grid = (
            pooled((x.shape[1], x.shape[2]), stride) for stride in (settings.q_stride, settings.kv_stride)
        )
        parameters = [norm.weight, norm.bias, self.qkv.weight, self.qkv.bias]
        for pool in (self.pool_q, self.pool_k, self.pool_v):
            parameters += [pool.weight, pool.norm.weight, pool.norm.bias]
        freq, time = (
            vectors(self.relative_freq, q_grid[0], k_grid[0]),
            diagonals(self.relative_time, q_grid[1], k_grid[1]),
        )
        time = vectors(self.relative_time, q_grid[1], k_grid[1]) if time is None else time
        weights = fused.AttentionWeights._make([*parameters, freq, time, self.proj.weight, self.proj.bias])
        return fused.attention_branch(x, settings, weights, shares)


class FastMlp(Mlp):
    """MLP that keeps one of its two wide activations for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """See ``Mlp``."""
        hidden = self.fc1(x)
        activated = F.gelu(hidden)
        with recomputed(F.gelu, hidden, activated):
            return self.fc2(activated)

    def plain(self, x: Tensor) -> Tensor:
        """The same, keeping every step."""
        return super().forward(x)


class FastBlock(Block):
    """A block of MAST on the fastest way that fits.

    Attributes:
        kernels: devices whose kernels it may use, "cpu" and "cuda".
        by_branches: use the functions of ``mast.fast.cuda.branches`` where they fit.
    """

    kernels: tuple[str, ...] = ("cpu", "cuda")
    by_branches = True

    def forward(self, x: Tensor) -> Tensor:
        """See ``Block``."""
        if not torch.compiler.is_compiling():
            way = self.way(x)
            if not confirmed(self, way):
                return Block.forward(self, x)  # its parts are plain by now
            if way == "cpu":
                return self._forward_fused(x)
        with weights_in_half(self, x):
            return self._forward_by_branches(x) if self._by_branches(x) else self._forward_by_parts(x)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See ``nn.Module``; compiled code takes its weights as they are cast outside of it."""
        if self._compiled_call_impl is None or not args:
            return super().__call__(*args, **kwargs)
        with weights_in_half(self, args[0]):
            return super().__call__(*args, **kwargs)

    def _forward_by_parts(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        with recomputed(self.norm1, x, normed):
            branch, residual = self.attn(normed), self.residual(x, normed)
        x = self.add1(residual, branch)
        return self.add2(x, self._mlp_branch(x))

    def way(self, x: Tensor) -> str:
        """What computes ``x``: "cpu" or "cuda" (their kernels), or "operators"."""
        if "cpu" in self.kernels and self._fused(x):
            return "cpu"
        if "cuda" in self.kernels and x.is_cuda:
            half = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
            if half in (torch.float16, torch.bfloat16) and cuda.fits(self.attn.proj.in_features // self.attn.heads):
                return "cuda"
        return "operators"

    def _forward_fused(self, x: Tensor) -> Tensor:
        attn: FastAttention = self.attn  # type: ignore[assignment]
        if self.shortcut is None and self.q_stride == (1, 1):
            x = attn.fused(x, self.norm1, True, self.add1.shares(x))
        else:
            normed = x if self.shortcut is None else self.norm1(x)
            x = self.add1(self.residual(x, normed), attn.fused(x, self.norm1))
        layers = (self.norm2, self.mlp.fc1, self.mlp.fc2)
        parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
        return fused.mlp_branch(x, NORM_EPS, self.add2.shares(x), *parameters)

    def _by_branches(self, x: Tensor) -> bool:
        """Whether the functions of ``mast.fast.cuda.branches`` take ``x``; compiled code does without them."""
        if not self.by_branches or "cuda" not in self.kernels or not x.is_cuda or torch.compiler.is_compiling():
            return False
        linear, mixed = self.attn.proj, torch.is_autocast_enabled("cuda")
        fits = x.dtype == (torch.get_autocast_dtype("cuda") if mixed else linear.weight.dtype)
        return fits and self._can_fuse(x) and cuda.usable(x, linear.in_features // self.attn.heads)

    def _forward_by_branches(self, x: Tensor) -> Tensor:
        from mast.fast.cuda import branches, norms, positions  # they need Triton

        attn, mlp, affine = self.attn, self.mlp, (self.norm1.weight, self.norm1.bias)
        x, normed = branches.normed(x, *affine, NORM_EPS)
        settings = branches.Settings(attn.heads, attn.pool_q.stride, attn.pool_k.stride, NORM_EPS)
        grids = (pooled((x.shape[1], x.shape[2]), stride) for stride in (settings.q_stride, settings.kv_stride))
        where = positions.Positions(attn.relative_freq, attn.relative_time, *grids)
        pools = [p for pool in (attn.pool_q, attn.pool_k, attn.pool_v) for p in (pool.weight, *pool.norm.parameters())]
        with recomputed(lambda x: norms.layer_norm(x, *affine, NORM_EPS)[0], x, normed):
            qkv = (attn.qkv.weight, attn.qkv.bias)
            branch = branches.attention_branch(normed, settings, where, qkv, pools, attn.proj.weight)
            residual = self.residual(x, normed)
        shares = (self.add1.shares(branch), self.add2.shares(branch))
        layers = (self.norm2, mlp.fc1, mlp.fc2)
        weights = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
        keep_hidden = x.shape[-1] > CHEAP_DIM
        return branches.add_and_mlp(residual, branch, NORM_EPS, keep_hidden, shares, attn.proj.bias, *weights)

    def _fused(self, x: Tensor) -> bool:
        """Whether the compiled functions for CPUs take the branches of ``x``."""
        mine: dict[str, Any] = self._modules
        if not self._can_fuse(x):
            return False
        within, hidden = mine["attn"]._modules, mine["mlp"]._modules
        linear = (within["qkv"], within["proj"], hidden["fc1"], hidden["fc2"])
        pools = (within["pool_q"], within["pool_k"], within["pool_v"])
        norms = (mine["norm1"], mine["norm2"], *(pool._modules["norm"] for pool in pools))
        widths = (x.shape[-1], linear[1].in_features // mine["attn"].heads, linear[2].out_features)
        return fused.usable(x, *widths) and all(map(_in_memory, (*linear, *norms, *pools)))

    def _can_fuse(self, x: Tensor) -> bool:
        """Whether the branches can run fused: nobody follows the layers within, and all are as they were made."""
        # Read directly: this runs for every block of every call, and a module's attributes take their time.
        mine: dict[str, Any] = self._modules
        attn, mlp = mine["attn"], mine["mlp"]
        if observed() or not x.numel() or not is_unmodified(attn, FastAttention) or not is_unmodified(mlp, FastMlp):
            return False
        within, hidden = attn._modules, mlp._modules
        pools = (within["pool_q"], within["pool_k"], within["pool_v"])
        tables = (within["relative_freq"], within["relative_time"])
        if not all(is_unmodified(pool, DepthwisePool) for pool in pools):
            return False
        if not all(is_unmodified(table, RelativeTable) for table in tables):
            return False
        if not is_unmodified(mine["add1"], AddBranch) or not is_unmodified(mine["add2"], AddBranch):
            return False
        linear = (within["qkv"], within["proj"], hidden["fc1"], hidden["fc2"])
        norms = (mine["norm1"], mine["norm2"], *(pool._modules["norm"] for pool in pools))
        if not all(is_unmodified(layer, nn.Linear) and layer._parameters.get("bias") is not None for layer in linear):
            return False
        if not all(
            is_unmodified(n, nn.LayerNorm) and n.eps == NORM_EPS and n._parameters.get("bias") is not None
            for n in norms
        ):
            return False
        return bool(x.ndim == 4 and x.shape[-1] == linear[0].in_features)  # else for the plain layers to refuse

    def _mlp_branch(self, x: Tensor) -> Tensor:
        mlp = self.mlp
        followed = torch.compiler.is_compiling() or transformed() or not is_unmodified(mlp, FastMlp)
        if torch.is_grad_enabled() and x.shape[-1] <= CHEAP_DIM and not followed:
            # Checkpointing stops before fc2, so that only the norm and fc1 are computed again.
            again = lambda x: mlp.plain(self.norm2(x))  # type: ignore[operator]  # noqa: E731
            return checkpoint(again, x, use_reentrant=False, preserve_rng_state=False)
        normed = self.norm2(x)
        with recomputed(self.norm2, x, normed):
            return mlp(normed)


class FastAstBlock(AstBlock):
    """A block of AST whose MLP keeps less."""

    kernels: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """See ``AstBlock``."""
        if not torch.compiler.is_compiling():
            confirmed(self, self.way(x))  # or its parts are plain by now
        with weights_in_half(self, x):
            return super().forward(x)

    def way(self, x: Tensor) -> str:
        """What computes ``x``."""
        return "operators"


# Plain class -> fast class: the kinds of blocks, and what is within them.
BLOCKS: dict[type[nn.Module], type[nn.Module]] = {Block: FastBlock, AstBlock: FastAstBlock}
PARTS: dict[type[nn.Module], type[nn.Module]] = {PoolingAttention: FastAttention, Mlp: FastMlp}


def swap(block: nn.Module, fast: bool, kernels: tuple[str, ...] = ()) -> None:
    """Make ``block`` and its parts fast, with ``kernels`` of these devices, or plain again, in place."""
    classes = BLOCKS | PARTS
    for module in block.modules():
        if not fast:
            for plain, other in classes.items():
                if type(module) is other:
                    module.__class__ = plain
                    module.__dict__.pop("kernels", None)
        elif type(module) in classes or type(module) in classes.values():
            module.__class__ = classes.get(type(module), type(module))
            if isinstance(module, FastBlock):
                module.kernels = kernels
            elif isinstance(module, FastAttention):
                module.kernels = "cuda" in kernels


def is_unmodified(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether ``module`` is what the block was made with: not replaced, wrapped, patched or hooked."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return type(module) is kind and not hooks and "forward" not in module.__dict__


def _in_memory(module: nn.Module) -> bool:
    """Whether kernels can read the weights; tensors of other kinds, such as sharded ones, keep values elsewhere."""
    for weight in module._parameters.values():
        plain = weight is None or (type(weight) is nn.Parameter and weight.is_cpu and weight.dtype is torch.float32)
        if not plain or (weight is not None and not weight.is_contiguous()):
            return False
    return True


def confirmed(block: nn.Module, way: str) -> bool:
    """Whether ``way`` computes what the plain code says; where it does not, ``block`` becomes plain, with a warning.

    ``accelerate`` compared them already. This looks again where code changed since, or the device did.
    """
    from mast.fast import comparison  # it knows these classes

    return comparison.confirmed(block, way)
