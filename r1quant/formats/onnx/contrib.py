"""A decoder in onnxruntime's own operators: MatMulNBits, GroupQueryAttention, SkipSimplifiedLayerNormalization.

Linears that share an input are one MatMulNBits if their codes are stored alike: their rows one below the other,
which changes no number. It does not know in which order a decoder uses its parts.
"""

from __future__ import annotations

from r1quant.formats.onnx.dimensions import Dimensions
from r1quant.formats.onnx.graph import CONTRIB, Graph
from r1quant.formats.onnx.layout import BlockLayout
from r1quant.formats.onnx.standard import rms_norm
from r1quant.formats.onnx.weights import Q8_BLOCK, Weights, joined


class Contrib:
    """`start` first; every other method adds nodes and returns the names of what they give."""

    def __init__(self, graph: Graph, weights: Weights, sizes: Dimensions) -> None:
        self.graph, self.weights, self.sizes = graph, weights, sizes
        self._summed: set[str] = set()

    def start(self) -> None:
        """What GroupQueryAttention needs to know of the past: the last position of each row, and the total length."""
        g = self.graph
        g.node("ReduceSum", ["attention_mask", g.integers(1)], "mask.sum", {"keepdims": 0})
        g.node("Sub", ["mask.sum", g.integers(1)], "last.position")
        g.node("Cast", ["last.position"], "seqlens_k", {"to": 6})
        g.node("Shape", ["attention_mask"], "total.length", {"start": 1, "end": 2})
        g.node("Squeeze", ["total.length"], "total.count")
        g.node("Cast", ["total.count"], "total_sequence_length", {"to": 6})

    def norm(self, x: str, weight: str, name: str) -> str:
        """In standard operators, which onnxruntime fuses: its own operator is not one that ONNX checkers know."""
        return rms_norm(self.graph, self.weights, x, weight, name, self.sizes.epsilon)

    def add_and_norm(self, x: str, residual: str, weight: str, name: str) -> tuple[str, str]:
        """(normalized, sum)"""
        total = f"{name}.sum"
        inputs = [residual, x, self.weights.floats(weight)]
        attributes = {"epsilon": self.sizes.epsilon}
        kind = "SkipSimplifiedLayerNormalization"
        self.graph.node(kind, inputs, name, attributes, [name, "", "", total], CONTRIB)
        return name, total

    def linears(self, x: str, names: tuple[str, ...]) -> list[str]:
        """One output per linear, biases added, or one for all of them together."""
        if len(names) > 1 and self._fused(names):
            return [self._biased(self._quantized(x, names), names)]
        return [self._biased(self._linear(x, name), (name,)) for name in names]

    def attention(self, layer: int, qkv: list[str], norms: tuple[str, ...], prefix: str) -> str:
        """[batch, sequence, heads * head] before the output projection. norms: weights for q and k, or none."""
        g, s = self.graph, self.sizes
        if norms:
            qkv = self._apart(qkv, (s.heads * s.head, s.kv_heads * s.head, s.kv_heads * s.head), prefix)
            qkv = [
                self._head_norm(qkv[0], s.heads, norms[0], f"{prefix}.q"),
                self._head_norm(qkv[1], s.kv_heads, norms[1], f"{prefix}.k"),
                qkv[2],
            ]
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        inputs = [*qkv, *[""] * (3 - len(qkv)), *past, "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache"]
        attributes = {
            "num_heads": s.heads,
            "kv_num_heads": s.kv_heads,
            "scale": s.head**-0.5,
            "do_rotary": 1,
            "local_window_size": s.windows[layer] or -1,
        }
        outputs = [f"{prefix}.out", f"present.{layer}.key", f"present.{layer}.value"]
        return g.node("GroupQueryAttention", inputs, f"{prefix}.attention", attributes, outputs, CONTRIB)

    def gated(self, gate_up: list[str], inner: int, prefix: str) -> str:
        """SiLU(gate) * up"""
        gate, up = self._apart(gate_up, (inner, inner), prefix)
        silu = self.graph.node("QuickGelu", [gate], f"{prefix}.silu", {"alpha": 1.0}, domain=CONTRIB)
        return self.graph.node("Mul", [silu, up], f"{prefix}.gated")

    def embedding(self, name: str) -> str:
        """Of rows that are looked up as integers if it is quantized, whatever the options say of floats."""
        linear = name.removesuffix(".weight")
        if self.weights.looks_up(linear):
            base, layout = self.weights.table(linear)
            _, blocks, block_bytes = layout.shapes["qweight"]
            self.graph.add_view(f"{base}.rows", f"{base}.qweight", (layout.rows, blocks * block_bytes))
            parameters = [f"{base}.{suffix}" for suffix in layout.shapes if suffix != "qweight"]
            return self._gathered(f"{base}.rows", parameters, layout.block, layout.width)
        if self.weights.options.embedding == "exact":
            return self.graph.node("Gather", [self.weights.floats(name), "input_ids"], "embedded")
        base = self.weights.rounded(name)
        return self._gathered(f"{base}.codes", [f"{base}.scales"], Q8_BLOCK, 8)

    def _gathered(self, codes: str, parameters: list[str], block: int, bits: int) -> str:
        """Rows of a quantized embedding. parameters: scales and, if there are any, zero points."""
        attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": block, "bits": bits}
        inputs = [codes, "input_ids", *parameters]
        wide = self.graph.node("GatherBlockQuantized", inputs, "embedded.blocks", attributes, domain=CONTRIB)
        if self.sizes.hidden % block == 0:
            return wide
        bounds = [self.graph.integers(value) for value in (0, self.sizes.hidden, -1)]
        return self.graph.node("Slice", [wide, *bounds], "embedded")

    def head(self, x: str, name: str) -> str:
        """name: of the head's tensor, or of the embedding if they are tied."""
        linear = name.removesuffix(".weight")
        if f"{linear}.rows" in self.graph.outside:  # it is the embedding as well
            base, layout = self.weights.table(linear)
            return self._matmul(x, [f"{base}.{suffix}" for suffix in layout.shapes], layout, "logits")
        if self.weights.options.head == "exact" or self.weights.linear_spec(linear) is not None:
            return self._linear(x, linear, "logits")
        base, blocks = self.weights.rounded(name), -(-self.sizes.hidden // Q8_BLOCK)
        self.graph.add_view(f"{base}.blocks", f"{base}.codes", (self.sizes.vocabulary, blocks, Q8_BLOCK))
        shape = self.sizes.vocabulary, self.sizes.hidden
        layout = BlockLayout("matmulnbits", shape, 8, Q8_BLOCK, 8, 1, Q8_BLOCK, zeros=False)
        return self._matmul(x, [f"{base}.blocks", f"{base}.scales"], layout, "logits")

    def _fused(self, names: tuple[str, ...]) -> bool:
        """Whether these linears can be one: all quantized, stored alike, and all or none with a bias."""
        if any(self.weights.linear_spec(name) is None for name in names):
            return False
        first, *others = self.weights.layouts(names)
        biased = {self.weights.has(f"{name}.bias") for name in names}
        return len(biased) == 1 and all(first.fuses_with(other) for other in others)

    def _linear(self, x: str, linear: str, output: str = "") -> str:
        weight = f"{linear}.weight"
        if self.weights.linear_spec(linear) is not None and weight not in self.graph.outside:
            return self._quantized(x, (linear,), output)
        inputs = [x, self.weights.floats(weight)]
        return self.graph.node("FusedMatMul", inputs, output or f"{linear}.out", {"transB": 1}, domain=CONTRIB)

    def _quantized(self, x: str, names: tuple[str, ...], output: str = "") -> str:
        base, layout = self.weights.quantized(names)
        output = output or f"{base}.out"
        tensors = [f"{base}.{suffix}" for suffix in layout.shapes if suffix != "offsets"]
        if not layout.offsets:
            return self._matmul(x, tensors, layout, output)
        product = self._matmul(x, tensors, layout, f"{output}.codes")
        inputs = [self._sums(x, layout), f"{base}.offsets"]
        added = self.graph.node("FusedMatMul", inputs, f"{output}.offsets", {"transB": 1}, domain=CONTRIB)
        return self.graph.node("Add", [product, added], output)

    def _sums(self, x: str, layout: BlockLayout) -> str:
        """The sum of the inputs in each block, which is what an offset is multiplied with."""
        name = f"{x}.sums{layout.block}"
        if name not in self._summed:
            self._summed.add(name)
            shape = self.graph.integers(0, 0, layout.blocks, layout.block)
            self.graph.node("Reshape", [x, shape], f"{name}.blocks")
            self.graph.node("ReduceSum", [f"{name}.blocks", self.graph.integers(-1)], name, {"keepdims": 0})
        return name

    def _matmul(self, x: str, tensors: list[str], layout: BlockLayout, output: str) -> str:
        attributes = {
            "N": layout.rows,
            "K": layout.shape[1],
            "bits": layout.width,
            "block_size": layout.block,
            "accuracy_level": self.weights.options.accuracy_level,
        }
        if layout.planes == 1:
            return self.graph.node("MatMulNBits", [x, *tensors], output, attributes, domain=CONTRIB)
        both = self.graph.node("MatMulNBits", [x, *tensors], f"{output}.planes", attributes, domain=CONTRIB)
        planes, half = [f"{output}.high", f"{output}.low"], layout.shape[0]
        self.graph.node("Split", [both, self.graph.integers(half, half)], f"{output}.split", {"axis": -1}, planes)
        return self.graph.node("Add", planes, output)

    def _biased(self, x: str, names: tuple[str, ...]) -> str:
        """Adds the biases of linears, side by side; a runtime joins them once, when it loads the model."""
        if not self.weights.has(f"{names[0]}.bias"):
            return x
        parts = [self.weights.floats(f"{name}.bias") for name in names]
        base = joined(names)
        bias = self.graph.node("Concat", parts, f"{base}.biases", {"axis": 0}) if len(parts) > 1 else parts[0]
        return self.graph.node("Add", [x, bias], f"{base}.biased")

    def _apart(self, parts: list[str], widths: tuple[int, ...], prefix: str) -> list[str]:
        """Outputs that are still one, split."""
        if len(parts) == len(widths):
            return parts
        outputs = [f"{prefix}.part{i}" for i in range(len(widths))]
        self.graph.node("Split", [parts[0], self.graph.integers(*widths)], f"{prefix}.parts", {"axis": -1}, outputs)
        return outputs

    def _head_norm(self, x: str, count: int, weight: str, name: str) -> str:
        """Normalizes every head of [batch, sequence, heads * head]."""
        g, head = self.graph, self.sizes.head
        split = g.node("Reshape", [x, g.integers(0, 0, count, head)], f"{name}.split")
        return g.node(
            "Reshape", [self.norm(split, weight, f"{name}.norm"), g.integers(0, 0, count * head)], f"{name}.flat"
        )
