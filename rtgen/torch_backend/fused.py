"""The denoiser with everything between its matrix products in a few kernels, and the prompt's keys and values kept.

It computes what :class:`rtgen.models.dit.CausalVideoDiT` does. Two things are rounded less often: what becomes FP8
codes is not rounded to float16 before, and normed queries and keys are not before they are rotated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rtgen.models.layers import sinusoid
from rtgen.torch_backend.fp8_linear import Fp8Linear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rtgen.models.dit import Attend, Block, CausalVideoDiT, CrossAttention
    from rtgen.torch_backend.steps import Steps

_AFFINE_EPS: Final = 1e-5
"""Of the block's norm with weights of its own, which takes torch's default."""
_SCALES: Final = (1, 4)
"""Rows of a block's modulation that one is added to."""


class Product:
    """Linear layers that read the same input, as a step leaves it: codes where all of them multiply in FP8."""

    step: Tensor | None
    """Of the codes; None for float16."""

    def __init__(self, steps: Steps, *layers: nn.Module) -> None:
        self._steps, self._layers = steps, layers
        found = [layer.input_scale for layer in layers if isinstance(layer, Fp8Linear)]
        self._coded = torch.stack(found).amax() if found else None  # the largest: no layer's input saturates
        self.step = self._coded if len(found) == len(layers) else None

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [T, in] to [T, out] of each layer."""
        if self._coded is None:
            return tuple(layer(x) for layer in self._layers)
        codes = x if self.step is not None else self._steps.encode(x, self._coded)
        return tuple(
            layer.multiply(codes, self._coded) if isinstance(layer, Fp8Linear) else layer(x) for layer in self._layers
        )


class FusedDenoiser:
    """Called as the model is, with a batch of one, in float16; :meth:`prepare` comes first."""

    def __init__(self, model: CausalVideoDiT, steps: Steps) -> None:
        self._model, self._steps = model, steps
        blocks = cast("Sequence[Block]", model.blocks)
        self._layers = [_Layer(block, steps, model.config.eps) for block in blocks]
        self._modulation = torch.stack([_factors(block.modulation, _SCALES) for block in blocks])[:, None]
        self._head_modulation = _factors(model.head.modulation, (1,))
        self._head = Product(steps, model.head.head)

    def prepare(self, context: Tensor) -> None:
        """Keep keys and values of the encoded prompt [1, L, text_dim] for the passes that follow. They stay where they
        are, so graphs see them."""
        model = self._model
        text = model.text_embedding(context.to(model.patch_embedding.weight.dtype))
        for layer in self._layers:
            layer.prepare(text)

    def __call__(self, latents: Tensor, timestep: Tensor, context: Tensor, rotation: Tensor, attend: Attend) -> Tensor:
        model, steps, eps = self._model, self._steps, self._model.config.eps
        x = model.embed_patches(latents).float()[0]
        dtype = model.patch_embedding.weight.dtype
        time = model.time_embedding(sinusoid(timestep, model.config.frequency_dim).to(dtype))
        parts = model.time_projection(time).unflatten(2, (6, -1)).float() + self._modulation  # [layers, F, 6, dim]
        branch = gate = None
        for number, layer in enumerate(self._layers):
            branch = layer(x, branch, gate, parts[number], rotation, attend)
            gate = parts[number, :, 5]
        shift, scale = (time.float()[0].unsqueeze(1) + self._head_modulation).unbind(1)
        (velocity,) = self._head(steps.norm(x, branch, gate, scale, shift, self._head.step, eps))
        _, height, width = model.config.patch
        rows, columns = latents.shape[3] // height, latents.shape[4] // width
        return model.restore_patches(velocity[None].float(), latents.shape[2], rows, columns)


def _factors(modulation: Tensor, scales: tuple[int, ...]) -> Tensor:
    """Rows of a modulation [1, rows, dim] as float32, with the one added that scales are factors by."""
    rows = modulation[0].to(torch.float32, copy=True)
    rows[list(scales)] += 1
    return rows


class _Layer:
    """A block: what it adds to the residual stream last is left to the next one's first step."""

    def __init__(self, block: Block, steps: Steps, eps: float) -> None:
        own, ffn = block.self_attn, block.ffn
        self._number, self._steps, self._eps = block.layer, steps, eps
        self._projections, self._output = Product(steps, own.q, own.k, own.v), Product(steps, own.o)
        self._gains = own.norm_q.weight.float(), own.norm_k.weight.float()
        self._affine = block.norm3.weight.float(), block.norm3.bias.float()
        self._prompt = _PromptAttention(block.cross_attn, steps, eps)
        self._wide, self._narrow = ffn[0], Product(steps, ffn[2])
        self._widen = Product(steps, ffn[0])

    def prepare(self, text: Tensor) -> None:
        self._prompt.prepare(text)

    def __call__(
        self, x: Tensor, branch: Tensor | None, gate: Tensor | None, parts: Tensor, rotation: Tensor, attend: Attend
    ) -> Tensor:
        """x [T, dim] is changed in place; ``branch`` and ``gate`` are what the block before left to add."""
        steps, eps, prompt = self._steps, self._eps, self._prompt
        shift, scale, gate1, shift2, scale2, _ = parts.unbind(1)
        query, key, value = self._projections(steps.norm(x, branch, gate, scale, shift, self._projections.step, eps))
        query, key, value = steps.heads((query, key, value), self._gains, rotation, eps)
        attention = attend(self._number, query, key, value)
        (branch,) = self._output(steps.merge(attention, self._output.step))
        branch = prompt(steps.norm(x, branch, gate1, *self._affine, prompt.step, _AFFINE_EPS))
        return self._feed_forward(steps.norm(x, branch, None, scale2, shift2, self._widen.step, eps))

    def _feed_forward(self, x: Tensor) -> Tensor:
        wide = self._wide
        if x.is_cuda and isinstance(wide, nn.Linear) and wide.bias is not None and self._narrow.step is None:
            inner = torch._addmm_activation(wide.bias, x, wide.weight.t(), use_gelu=True)  # in the product's kernel
        else:
            (inner,) = self._widen(x)
            inner = self._steps.gelu(inner, self._narrow.step)
        (result,) = self._narrow(inner)
        return result


class _PromptAttention:
    """Cross-attention, whose keys and values depend on the prompt alone."""

    def __init__(self, attention: CrossAttention, steps: Steps, eps: float) -> None:
        self._attention, self._steps, self._eps = attention, steps, eps
        self._query, self._output = Product(steps, attention.q), Product(steps, attention.o)
        self._gain = attention.norm_q.weight.float()
        self._kept: Sequence[Tensor] = ()

    @property
    def step(self) -> Tensor | None:
        """Of what it is given."""
        return self._query.step

    def prepare(self, text: Tensor) -> None:
        attention = self._attention
        found = attention.norm_k(attention.k(text)), attention.v(text)
        if not self._kept:
            self._kept = [torch.empty_like(tensor) for tensor in found]
        for kept, tensor in zip(self._kept, found, strict=True):
            kept.copy_(tensor)

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, dim] as :attr:`step` says to [T, dim]."""
        split = (self._attention.heads, -1)
        query = self._steps.rms(self._query(x)[0], self._gain, self._eps)
        tensors = (tensor.unflatten(2, split).transpose(1, 2) for tensor in (query[None], *self._kept))
        attention = F.scaled_dot_product_attention(*tensors)
        (result,) = self._output(self._steps.merge(attention, self._output.step))
        return result
