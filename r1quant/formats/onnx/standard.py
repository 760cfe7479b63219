"""A decoder in standard ONNX operators (opset 21), weights behind DequantizeLinear.

Slower than onnxruntime's own operators, and understood by every runtime. The past keys and values are concatenated
with the new ones. It does not know in which order a decoder uses its parts.
"""

from __future__ import annotations

import numpy as np

from r1quant.formats.onnx.dimensions import Dimensions
from r1quant.formats.onnx.graph import Graph
from r1quant.formats.onnx.weights import Weights

LOWEST = {"float32": -1e38, "float16": -3e4}  # added to a score, it stays finite and its share is 0


class Standard:
    """`start` first; every other method adds nodes and returns the names of what they give."""

    def __init__(self, graph: Graph, weights: Weights, sizes: Dimensions) -> None:
        self.graph, self.weights, self.sizes = graph, weights, sizes
        self._masks: dict[int | None, str] = {}

    def start(self) -> None:
        """Positions, their cosines and sines, and which column of the past sees which."""
        g = self.graph
        g.node("Shape", ["input_ids"], "input.length", {"start": 1, "end": 2})
        g.node("Shape", ["attention_mask"], "total.length", {"start": 1, "end": 2})
        g.node("Sub", ["total.length", "input.length"], "past.length")
        g.node("CumSum", ["attention_mask", g.constant(np.array(1, np.int64))], "mask.sum")
        g.node("Sub", ["mask.sum", g.integers(1)], "mask.positions")
        g.node("Max", ["mask.positions", g.integers(0)], "all.positions")
        g.node("Slice", ["all.positions", "past.length", "total.length", g.integers(1)], "positions")
        for name in ("cos", "sin"):
            g.node("Gather", [f"{name}_cache", "positions"], f"{name}.rows")
            g.node("Unsqueeze", [f"{name}.rows", g.integers(1)], name)
        zero, one = g.constant(np.array(0, np.int64)), g.constant(np.array(1, np.int64))
        g.node("Squeeze", ["total.length"], "total.count")
        g.node("Range", [zero, "total.count", one], "key.columns")
        g.node("Slice", ["key.columns", "past.length", "total.length"], "query.columns")
        g.node("Unsqueeze", ["query.columns", g.integers(1)], "query.column")
        g.node("Sub", ["query.column", "key.columns"], "distance")
        g.node("Cast", ["attention_mask"], "mask.flags", {"to": 9})
        g.node("Unsqueeze", ["mask.flags", g.integers(1, 2, 3)], "mask.keys")

    def norm(self, x: str, weight: str, name: str) -> str:
        """Root mean square normalization over the last axis, in float32: the shape that onnxruntime fuses."""
        return rms_norm(self.graph, self.weights, x, weight, name, self.sizes.epsilon)

    def add_and_norm(self, x: str, residual: str, weight: str, name: str) -> tuple[str, str]:
        """(normalized, sum)"""
        total = self.graph.node("Add", [x, residual], f"{name}.sum")
        return self.norm(total, weight, name), total

    def linears(self, x: str, names: tuple[str, ...]) -> list[str]:
        """One output per linear, biases added."""
        return [self._biased(self._matmul(x, name), name) for name in names]

    def attention(self, layer: int, qkv: list[str], norms: tuple[str, ...], prefix: str) -> str:
        """[batch, sequence, heads * head] before the output projection. norms: weights for q and k, or none."""
        g, s = self.graph, self.sizes
        repeated = s.heads // s.kv_heads
        turned = [
            self._rotated(x, count, norms[i] if norms else None, f"{prefix}.{'qk'[i]}")
            for i, (x, count) in enumerate(zip(qkv[:2], (s.heads, s.kv_heads), strict=True))
        ]
        value = self._heads(qkv[2], s.kv_heads, f"{prefix}.v")
        keys = self._with_past(turned[1], layer, "key")
        values = self._with_past(value, layer, "value")
        g.node("Reshape", [turned[0], g.integers(0, s.kv_heads, repeated, -1, s.head)], f"{prefix}.q.grouped")
        g.node("Transpose", [keys], f"{prefix}.k.turned", {"perm": [0, 1, 3, 2]})
        g.node("Unsqueeze", [f"{prefix}.k.turned", g.integers(2)], f"{prefix}.k.shared")
        g.node("Unsqueeze", [values, g.integers(2)], f"{prefix}.v.shared")
        scale = g.constant(np.array(s.head**-0.5, self.weights.numpy_dtype))
        g.node("Mul", [f"{prefix}.q.grouped", scale], f"{prefix}.q.scaled")
        g.node("MatMul", [f"{prefix}.q.scaled", f"{prefix}.k.shared"], f"{prefix}.scores")
        g.node("Add", [f"{prefix}.scores", self._mask(s.windows[layer])], f"{prefix}.masked")
        g.node("Softmax", [f"{prefix}.masked"], f"{prefix}.shares", {"axis": -1})
        g.node("MatMul", [f"{prefix}.shares", f"{prefix}.v.shared"], f"{prefix}.grouped")
        g.node("Reshape", [f"{prefix}.grouped", g.integers(0, s.heads, -1, s.head)], f"{prefix}.by_head")
        g.node("Transpose", [f"{prefix}.by_head"], f"{prefix}.by_token", {"perm": [0, 2, 1, 3]})
        return g.node("Reshape", [f"{prefix}.by_token", g.integers(0, 0, s.heads * s.head)], f"{prefix}.out")

    def gated(self, gate_up: list[str], inner: int, prefix: str) -> str:
        """SiLU(gate) * up, [batch, sequence, inner]"""
        g, (gate, up) = self.graph, gate_up
        g.node("Sigmoid", [gate], f"{prefix}.sigmoid")
        g.node("Mul", [gate, f"{prefix}.sigmoid"], f"{prefix}.silu")
        return g.node("Mul", [f"{prefix}.silu", up], f"{prefix}.gated")

    def embedding(self, name: str) -> str:
        return self.graph.node("Gather", [self.weights.floats(name), "input_ids"], "embedded")

    def head(self, x: str, name: str) -> str:
        """name: of the head's tensor, or of the embedding if they are tied."""
        linear = name.removesuffix(".weight")
        return self.graph.node("MatMul", [x, self._turned(linear)], "logits")

    def _matmul(self, x: str, linear: str) -> str:
        return self.graph.node("MatMul", [x, self._turned(linear)], f"{linear}.out")

    def _turned(self, linear: str) -> str:
        """The weight of a linear as [in, out]."""
        g = self.graph
        if self.weights.linear_spec(linear) is None or f"{linear}.weight" in g.outside:
            weight = self.weights.floats(f"{linear}.weight")
            return g.node("Transpose", [weight], f"{linear}.turned", {"perm": [1, 0]})
        base, layout = self.weights.quantized((linear,))
        inputs = [f"{base}.{suffix}" for suffix in layout.shapes]
        return g.node("DequantizeLinear", inputs, f"{linear}.turned", {"axis": 0, "block_size": layout.block})

    def _biased(self, x: str, linear: str) -> str:
        bias = f"{linear}.bias"
        if not self.weights.has(bias):
            return x
        return self.graph.node("Add", [x, self.weights.floats(bias)], f"{linear}.biased")

    def _heads(self, x: str, count: int, name: str) -> str:
        """[batch, sequence, heads * head] -> [batch, heads, sequence, head]"""
        g = self.graph
        g.node("Reshape", [x, g.integers(0, 0, count, self.sizes.head)], f"{name}.split")
        return g.node("Transpose", [f"{name}.split"], f"{name}.heads", {"perm": [0, 2, 1, 3]})

    def _rotated(self, x: str, count: int, norm: str | None, name: str) -> str:
        g, half = self.graph, self.sizes.head // 2
        g.node("Reshape", [x, g.integers(0, 0, count, self.sizes.head)], f"{name}.split")
        split = self.norm(f"{name}.split", norm, f"{name}.norm") if norm else f"{name}.split"
        g.node("Transpose", [split], f"{name}.heads", {"perm": [0, 2, 1, 3]})
        halves = [f"{name}.first", f"{name}.second"]
        g.node("Split", [f"{name}.heads", g.integers(half, half)], name, {"axis": -1}, halves)
        for part, other, sign in ((0, 1, "Sub"), (1, 0, "Add")):
            g.node("Mul", [halves[part], "cos"], f"{halves[part]}.cos")
            g.node("Mul", [halves[other], "sin"], f"{halves[part]}.sin")
            g.node(sign, [f"{halves[part]}.cos", f"{halves[part]}.sin"], f"{halves[part]}.turned")
        return g.node("Concat", [f"{half}.turned" for half in halves], f"{name}.rotated", {"axis": -1})

    def _with_past(self, x: str, layer: int, kind: str) -> str:
        past, present = f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}"
        return self.graph.node("Concat", [past, x], present, {"axis": 2})

    def _mask(self, window: int | None) -> str:
        """[batch, 1, 1, sequence, total], 0 for columns that attention sees and the lowest number for others."""
        if window not in self._masks:
            g, name = self.graph, f"mask.{window or 'causal'}"
            visible = g.node("GreaterOrEqual", ["distance", g.integers(0)], f"{name}.before")
            if window is not None:
                g.node("Less", ["distance", g.integers(window)], f"{name}.near")
                visible = g.node("And", [visible, f"{name}.near"], f"{name}.seen")
            g.node("And", [visible, "mask.keys"], f"{name}.both")
            dtype = self.weights.numpy_dtype
            lowest = g.constant(np.array(LOWEST[self.weights.options.dtype], dtype))
            nothing = g.constant(np.array(0, dtype))
            self._masks[window] = g.node("Where", [f"{name}.both", nothing, lowest], name)
        return self._masks[window]


def rms_norm(graph: Graph, weights: Weights, x: str, weight: str, name: str, epsilon: float) -> str:
    """Root mean square normalization in standard operators. name: of the result."""
    halves = weights.options.dtype == "float16"
    wide = graph.node("Cast", [x], f"{name}.wide", {"to": 1}) if halves else x
    graph.node("Pow", [wide, graph.constant(np.array(2, np.float32))], f"{name}.squares")
    graph.node("ReduceMean", [f"{name}.squares", graph.integers(-1)], f"{name}.mean", {"keepdims": 1})
    graph.node("Add", [f"{name}.mean", graph.constant(np.array(epsilon, np.float32))], f"{name}.positive")
    graph.node("Sqrt", [f"{name}.positive"], f"{name}.root")
    normal = graph.node("Div", [wide, f"{name}.root"], f"{name}.normal")
    if halves:
        normal = graph.node("Cast", [normal], f"{name}.narrow", {"to": 10})
    return graph.node("Mul", [normal, weights.floats(weight)], name)
