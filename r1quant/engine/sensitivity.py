"""What the answer needs of every linear: the gradients at its outputs, whose covariance is the Fisher matrix.

One forward and one backward pass with one decoder layer in memory. At the head a next token is drawn from the model's
own distribution at every position, so that E[g g^T] over the gradients g of the summed log-loss is the second
derivative of the KL divergence (Martens and Grosse 2015, arXiv 1503.05671). It knows nothing of files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from r1quant.core.limits import BACKWARD_TOKENS, BLOCK, HEAD_TOKENS
from r1quant.engine.blocks import DecoderLayer
from r1quant.engine.forward import Decoder, Head, chunked
from r1quant.engine.stats import add_gram, bfloat16_products, mirrored

LEAST = -80.0  # of a logit, below the largest: what is smaller is slow to compute with


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Of one linear with N outputs, on the host.

    weights     float32 [T]: |g_t|^2 of each token, g_t the gradient at the output
    covariance  float32 [n, n] of each block of at most BLOCK outputs in turn: the mean over tokens of g g^T / |g|, at
                the scale of that of g g^T
    """

    weights: torch.Tensor
    covariance: tuple[torch.Tensor, ...]

    @property
    def norms(self) -> torch.Tensor:
        """float32 [T]: |g_t|, 1 on average; 1 throughout if there is no gradient at all."""
        return _averaging_one(self.weights.sqrt())

    @property
    def squares(self) -> torch.Tensor:
        """Likewise |g_t|^2."""
        return _averaging_one(self.weights)


def _averaging_one(values: torch.Tensor) -> torch.Tensor:
    return values / values.mean() if bool(values.any()) else torch.ones_like(values)


def blocks(rows: int) -> list[slice]:
    """Equal runs of outputs, none larger than BLOCK."""
    count = math.ceil(rows / BLOCK)
    return [slice(rows * i // count, rows * (i + 1) // count) for i in range(count)]


def head_gradient(decoder: Decoder, hidden: torch.Tensor, seed: int) -> torch.Tensor:
    """The gradient of the summed log-loss of drawn tokens at the last layer's output.

    hidden: [windows, seq_len, width]; the gradient has its shape, dtype and device.
    """
    head, found = decoder.head(decoder.dtype), torch.empty_like(hidden)
    generator = torch.Generator(decoder.device).manual_seed(seed)
    flat, out = hidden.flatten(0, 1), found.flatten(0, 1)
    for start in range(0, len(flat), HEAD_TOKENS):
        rows = slice(start, start + HEAD_TOKENS)
        states = flat[rows].to(decoder.device).requires_grad_()
        with torch.enable_grad():
            normed = decoder.final_norm(states[None])[0]
        with torch.no_grad():
            upstream = _loss_gradient(head, normed, generator)
        (gradient,) = torch.autograd.grad(normed, states, upstream.to(normed.dtype))
        out[rows] = gradient.to(out.device)
    return found


def _loss_gradient(head: Head, normed: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """float32 [tokens, width], that of the log-loss of tokens drawn by the inverse of the distribution."""
    odds = head.logits(normed)
    odds.sub_(odds.amax(1, keepdim=True)).clamp_(min=LEAST).exp_()
    below = odds.cumsum(1)
    total = below[:, -1:].clone()
    level = total * torch.rand(total.shape, generator=generator, device=total.device)
    drawn = torch.searchsorted(below, level, right=True).clamp_(max=odds.shape[1] - 1)
    del below
    return head.transposed(odds.scatter_add_(1, drawn, -total)) / total


def backward(
    layer: DecoderLayer, hidden: torch.Tensor, gradient: torch.Tensor, advance: Callable[[float], None]
) -> dict[str, Sensitivity]:
    """The sensitivities of the layer's linears, by their names within it.

    hidden is what enters the layer, gradient that at its output; it is replaced by that at its input. Both
    [windows, seq_len, width].
    """
    device = layer.device
    sums = {name: _Sums(layer.weight(name).shape[0], device) for name in layer.arch.layer.linears}
    parts = list(chunked(hidden, BACKWARD_TOKENS))
    for states, upstream in zip(parts, chunked(gradient, BACKWARD_TOKENS), strict=True):
        x = states.to(device).requires_grad_()
        hooks = [layer.get(name).register_forward_hook(partial(_watch, sums[name])) for name in sums]
        try:
            with torch.enable_grad():
                output = layer(x)
            (into,) = torch.autograd.grad(output, x, upstream.to(device))
        finally:
            for hook in hooks:
                hook.remove()
        upstream.copy_(into)
        advance(1 / len(parts))
    return {name: found.result() for name, found in sums.items()}


class _Sums:
    """The sensitivity of one linear as it grows.

    The covariance counts each token by the norm of its gradient, as the Hessian of the inputs does (engine/layer.py),
    not by its square: a few tokens would decide over it alone.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self._weights: list[torch.Tensor] = []
        self._covariance = [(run, torch.zeros((run.stop - run.start,) * 2, device=device)) for run in blocks(rows)]

    def add(self, gradient: torch.Tensor) -> None:
        """gradient: [..., N], bfloat16 or float32."""
        wide = gradient.reshape(-1, gradient.shape[-1]).float()
        squares = wide.square().sum(1)
        self._weights.append(squares.cpu())
        wide = wide * torch.where(squares > 0, squares, 1).pow(-0.25)[:, None]
        with bfloat16_products(gradient.dtype == torch.bfloat16 and gradient.device.type == "cpu"):
            for run, total in self._covariance:
                add_gram(total, wide[:, run])

    def result(self) -> Sensitivity:
        weights = torch.cat(self._weights)
        scale = float(weights.mean() / weights.sqrt().sum().clamp(min=torch.finfo(torch.float32).tiny))
        return Sensitivity(weights, tuple((mirrored(total) * scale).cpu() for _, total in self._covariance))


def _watch(sums: _Sums, module: Any, inputs: Any, output: Any) -> None:
    output.register_hook(sums.add)
