"""Bits within a budget: which are chosen, what that takes to the byte, and what is said where nothing fits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from r1quant.checkpoint.safetensors import Checkpoint, open_folder
from r1quant.core.options import nbytes
from r1quant.errors import NumericError, RecipeError
from r1quant.hardware.cards import cards
from r1quant.planning import planner
from r1quant.planning.budget import LossPredictions
from r1quant.planning.choices import Choice
from r1quant.planning.plan import Plan
from r1quant.recipe import Recipe, from_values
from tests import models


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Eight layers, so that there is something to choose."""
    return open_folder(models.write_model(tmp_path_factory.mktemp("budget") / "m", "qwen3", num_hidden_layers=8))


def recipe(**values: Any) -> Recipe:
    return from_values({"method": "rtn", "group_size": 32, **values})


def predicted(made: Plan, sensitive: str = "") -> LossPredictions:
    """Errors that fall by four with every bit; those of linears called `sensitive` count a thousandfold."""
    losses: dict[str, dict[Choice, float]] = {
        x.name: {b: (1000.0 if sensitive and sensitive in x.name else 1.0) * x.weights * 4.0**-b for b in range(2, 9)}
        for x in made.linears
    }
    return LossPredictions(losses, "made up")


def decided(checkpoint: Checkpoint, sensitive: str = "", **values: Any) -> Plan:
    made = planner.make(checkpoint, recipe(**values))
    return planner.allocated(made, predicted(made, sensitive))


@pytest.mark.parametrize("format", ["gptq", "compressed-tensors"])
@pytest.mark.parametrize("target", [5.5, 6.25, 7.5])
def test_bits_per_weight_are_met_and_not_exceeded(checkpoint: Checkpoint, format: str, target: float) -> None:
    found = decided(checkpoint, target_bpw=target, format=format)
    assert found.decided and not found.problems
    assert target - 0.15 < found.bits_per_weight <= target
    entries = found.as_dict()["linears"]
    weights = sum(math.prod(entry["shape"]) for entry in entries)
    assert found.bits_per_weight == pytest.approx(8 * sum(entry["bytes"] for entry in entries) / weights)
    assert {entry["bits"] for entry in entries} <= ({4, 8} if format == "gptq" else set(range(2, 9)))
    for stage in {(x.layer, x.stage) for x in found.linears}:
        assert len({found.grids[x.name] for x in found.linears if (x.layer, x.stage) == stage}) == 1
    assert found.layout == planner.make(checkpoint, found.recipe, grids=found.grids).layout


def test_sensitive_linears_get_the_bits(checkpoint: Checkpoint) -> None:
    found = decided(checkpoint, "layers.3.", target_bpw=5.0, format="compressed-tensors")
    layer = {grid.bits for name, grid in found.grids.items() if grid and "layers.3." in name}
    others = {grid.bits for name, grid in found.grids.items() if grid and "layers.3." not in name}
    assert layer == {8} and max(others) < 6
    assert found.allocation is not None and found.allocation.gap == 0 and found.allocation.source == "made up"
    losses = predicted(found, "layers.3.").losses
    total = sum(losses[name][grid.bits] for name, grid in found.grids.items() if grid)
    assert found.allocation.loss == pytest.approx(total)


@pytest.mark.parametrize("format", ["gptq", "compressed-tensors"])
def test_the_size_of_the_files_is_met_within_one_percent(
    checkpoint: Checkpoint, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r1quant.planning.layout.SHARD_LIMIT", 100_000)
    least, most = (
        planner.make(checkpoint, recipe(bits=bits, format=format)).layout.nbytes
        for bits in ((4, 8) if format == "gptq" else (2, 8))
    )
    for share in (0.2, 0.5, 0.8):
        size = round(least + share * (most - least))
        found = decided(checkpoint, target_size=size, format=format)
        assert 0.99 * size <= found.layout.nbytes <= size
    exact = decided(checkpoint, target_size=least, format=format)
    assert exact.layout.nbytes == least
    (problem,) = planner.make(checkpoint, recipe(target_size=least - 1, format=format)).problems
    assert "are too few: with" in problem.message and "--target-size" in problem.hint


def test_a_card_less_cache_and_runtime(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache: keys and values of 8 layers, 2 heads of 32 numbers, 2 bytes each, for every token."""
    per_token = 2 * 8 * 2 * 32 * 2
    hidden, inner, vocabulary = (checkpoint.config[f"{key}_size"] for key in ("hidden", "intermediate", "vocab"))
    card = replace(cards()["RTX 4060"], name="small", memory_bytes=0)
    four, eight = (planner.make(checkpoint, recipe(bits=bits)).layout.nbytes for bits in (4, 8))
    room = (four + eight) // 2
    beside = 700_000_000 + 2000 * (4 * hidden + 2 * inner) * 2 + vocabulary * 6  # runtime, activations, logits
    card = replace(card, memory_bytes=math.ceil((room + 2000 * per_token + beside) / 0.92))
    monkeypatch.setattr("r1quant.planning.budget.card", lambda name: card)
    found = decided(checkpoint, fit_gpu="small", context=2000)
    assert found.budget is not None and found.budget.as_dict()["kv_bytes"] == 2000 * per_token
    assert 0.98 * room < found.layout.nbytes <= found.budget.nbytes <= room + 1
    for context, says in ((2048, "leaves"), (2049, "context 2049 is longer than the model's 2048 positions")):
        small = replace(card, memory_bytes=card.memory_bytes - round((room - four) / 0.92))
        monkeypatch.setattr("r1quant.planning.budget.card", lambda name, small=small: small)
        (problem,) = planner.make(checkpoint, recipe(fit_gpu="small", context=context)).problems
        assert says in problem.message
        if context == 2048:
            assert "the small is too small" in problem.message and "702 MB of runtime" in problem.message
            assert 1950 <= int(problem.hint.split("--context ")[1].split()[0]) <= 2000


def test_linears_may_stay_in_float(checkpoint: Checkpoint) -> None:
    found = decided(checkpoint, "mlp.down", target_bpw=11, allowed_bits=[4, 16], format="compressed-tensors")
    kept = {name for name, grid in found.grids.items() if grid is None}
    assert {f"model.layers.{i}.mlp.down_proj" for i in range(8)} <= kept < set(found.grids)
    assert set(found.plain) == kept | {"lm_head"} and found.bits_per_weight <= 11
    with pytest.raises(RecipeError, match="every linear stays in float"):
        decided(checkpoint, target_bpw=17, allowed_bits=[4, 16])


def test_until_something_is_predicted_bits_are_open(checkpoint: Checkpoint) -> None:
    made = planner.make(checkpoint, recipe(target_bpw=5.5))
    assert not made.decided and not made.problems and made.warnings[0].startswith("bits are decided after")
    said = made.as_dict()
    assert said["allocation"] is None and {entry["bits"] for entry in said["linears"]} == {None}
    assert said["budget"]["choices"] == [4, 8] and said["recipe"]["bits"] is None
    assert made.bits_per_weight <= 5.5
    losses = {name: dict(of) for name, of in predicted(made).losses.items()}
    losses["model.layers.5.mlp.up_proj"].pop(8)
    with pytest.raises(NumericError, match=r"no loss is predicted for model.layers.5.mlp.up_proj at 8 bits"):
        planner.allocated(made, LossPredictions(losses, ""))
    losses["model.layers.5.mlp.up_proj"][8] = math.nan
    with pytest.raises(NumericError, match="loses nan"):
        planner.allocated(made, LossPredictions(losses, ""))
    plain = planner.make(checkpoint, recipe())
    assert planner.allocated(plain, predicted(plain)) is plain


@pytest.mark.parametrize(
    ("values", "says", "hint"),
    [
        ({"format": "awq"}, "awq holds 4 bits alone", "--format gptq or gptq-v2 or compressed-tensors"),
        ({"format": "compressed-tensors-int"}, "holds 8 bits alone", "--format gptq"),
        ({"allowed_bits": (4, 5)}, "gptq does not hold 5 bits here", "use --format compressed-tensors"),
        ({"allowed_bits": (4,)}, "with 4 bits alone there is nothing to choose", "--bits"),
        ({"target_bpw": 4.0}, "4 bits a weight are too few: 4 bits everywhere take 5.030", "--allowed-bits"),
        (
            {"target_bpw": 2.1, "format": "compressed-tensors"},
            "2 bits everywhere take 2.",
            "use larger groups, or a higher --target-bpw",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_with_the_numbers(
    checkpoint: Checkpoint, values: dict[str, Any], says: str, hint: str
) -> None:
    problems = planner.make(checkpoint, recipe(**{"target_bpw": 5.0} | values)).problems
    assert len(problems) == 1 and says in problems[0].message and hint in problems[0].hint


def test_the_bits_to_choose_from(checkpoint: Checkpoint) -> None:
    """What a runtime loads mixed, where one does; else what the format holds; and what is named in any case."""

    def choices(**values: Any) -> tuple[Choice, ...]:
        budget = planner.make(checkpoint, recipe(target_bpw=8, **values)).budget
        assert budget is not None
        return budget.choices

    assert choices() == (4, 8)
    assert choices(symmetric=False) == choices(format="gptq-v2") == choices(allowed_bits="2,3,4,8") == (2, 3, 4, 8)
    assert choices(format="compressed-tensors") == (2, 3, 4, 5, 6, 7, 8)
    assert choices(format="compressed-tensors", symmetric=False) == (2, 3, 4, 5, 6, 7, 8)
    assert choices(format="compressed-tensors", allowed_bits=[8, 4]) == (8, 4)


def test_a_server_that_does_not_load_all_bits_is_named_with_those_that_it_does(checkpoint: Checkpoint) -> None:
    made = planner.make(checkpoint, recipe(target_bpw=5.5, format="compressed-tensors"))
    assert any("vLLM does not load" in w and "--allowed-bits 4,8 chooses" in w for w in made.warnings)
    made = planner.make(checkpoint, recipe(target_bpw=5.5, format="compressed-tensors", allowed_bits="4,8"))
    assert not any("does not load" in warning for warning in made.warnings)
    assert any(w.startswith("transformers: ") and "dequantize=True" in w for w in made.warnings)
    alike = planner.make(checkpoint, recipe(format="compressed-tensors"))
    assert not any("dequantize=True" in warning for warning in alike.warnings)


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("4.7 gib", 5046586572), ("700MB", 7 * 10**8), ("123", 123), ("1 kB", 1000)],
)
def test_sizes(text: str, size: int) -> None:
    assert nbytes(text) == size


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"target_bpw": 5.0, "bits": 4}, "--bits and --target-bpw exclude each other"),
        ({"target_bpw": 5.0, "target_size": "5GB"}, "--target-bpw and --target-size exclude each other"),
        ({"target_size": "5XB"}, "target-size is '5XB'"),
        ({"target_size": "0GB"}, "target-size is 0"),
        ({"target_bpw": 0}, "target-bpw is 0"),
        ({"target_bpw": math.nan}, "target-bpw is nan"),
        ({"fit_gpu": "RTX 4090"}, "--fit-gpu and --context belong together"),
        ({"context": 4096}, "--fit-gpu and --context belong together"),
        ({"fit_gpu": "RTX 4090", "context": 0}, "context is 0"),
        ({"allowed_bits": "4,8"}, "--allowed-bits says from which bits"),
        ({"target_bpw": 5, "allowed_bits": "4,9"}, "bits 9 is not supported"),
        ({"target_bpw": 5, "allowed_bits": "4,x"}, "bits 'x' is not supported"),
    ],
    ids=str,
)
def test_values_that_do_not_go_together(values: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError) as refused:
        from_values(values)
    assert says in refused.value.message and refused.value.hint
