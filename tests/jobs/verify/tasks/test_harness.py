"""What lm-eval is answered, on a runtime whose next token is known: it counts up, and ends after nine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pytest

from r1quant.backends import Completion, Prompt, Sampling
from r1quant.checkpoint.artifact import Artifact
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.errors import RecipeError
from r1quant.jobs.artifacts import open_artifact
from r1quant.jobs.verify.harness import PIECE, TOKENS_PER_BATCH, Harness, _batches, _split, cut

ARTIFACT: Artifact = open_artifact("tiny-r1")
TOKENIZER = Tokenizer.from_files(ARTIFACT.side_files, "tiny-r1")
EOS, BOS = 1, 0
DIGITS = TOKENIZER.encode("0123456789")


class Counting:
    """After a digit comes the next one; after nine the end, or zero again if endless. It keeps what it was asked."""

    def __init__(self, endless: bool = False) -> None:
        self.asked: list[tuple[list[Prompt], Sampling, frozenset[int]]] = []
        self.scored: list[list[int]] = []
        self._after = dict(zip(DIGITS, [*DIGITS[1:], DIGITS[0] if endless else EOS], strict=True))

    @property
    def name(self) -> str:
        return "counting"

    def logits(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        self.scored.append(tokens.tolist())
        logits = np.zeros((len(tokens), TOKENIZER.size), np.float32)
        for place, token in enumerate(tokens.tolist()):
            logits[place, self._after.get(token, EOS)] = 10.0
        return logits

    def complete(self, prompts: Iterable[Prompt], sampling: Sampling, stop: frozenset[int]) -> Iterator[Completion]:
        listed = list(prompts)
        self.asked.append((listed, sampling, stop))
        for prompt in reversed(listed):
            made: list[int] = []
            last = prompt.tokens[-1]
            while len(made) < sampling.max_tokens and not (made and made[-1] in stop):
                last = self._after.get(last, EOS)
                made.append(last)
            yield Completion(prompt.key, tuple(made), "", len(made), made[-1] in stop)


def harness(runtime: Counting, context: int = 4096, max_tokens: int | None = None) -> Harness:
    return Harness(runtime, TOKENIZER, context, frozenset({EOS}), max_tokens, seed=5)


def test_digits_are_tokens() -> None:
    assert len(DIGITS) == 10 and (TOKENIZER.bos_id, TOKENIZER.eos_id) == (BOS, EOS)


def test_answers_in_the_order_of_the_requests() -> None:
    found = harness(Counting()).generate([("ab3", {}), ("7", {"until": "9"}), ("0", {"until": ["6", "4"]})])
    assert found == ["456789", "8", "123"]


def test_an_answer_is_looked_at_after_pieces_of_growing_length() -> None:
    runtime = Counting(endless=True)
    found = harness(runtime).generate([("9", {"max_gen_toks": 5 * PIECE})])
    assert found == [("0123456789" * PIECE)[: 5 * PIECE]]
    assert [asked[1].max_tokens for asked in runtime.asked] == [PIECE, 2 * PIECE, 2 * PIECE]
    prompts = [asked[0][0] for asked in runtime.asked]
    assert [len(prompt.tokens) for prompt in prompts] == [1, 1 + PIECE, 1 + 3 * PIECE]
    assert len({prompt.seed for prompt in prompts}) == 3


def test_nothing_more_is_asked_after_a_stop_string() -> None:
    runtime = Counting(endless=True)
    assert harness(runtime).generate([("9", {"until": ["4567"], "max_gen_toks": 1000})]) == ["0123"]
    assert len(runtime.asked) == 1


def test_stop_strings_that_are_tokens_end_an_answer_as_tokens() -> None:
    runtime = Counting()
    harness(runtime).generate([("1", {"until": ["<｜User｜>", "no token"]})])
    assert runtime.asked[0][2] == {EOS, TOKENIZER.backend.token_to_id("<｜User｜>")}


def test_how_tokens_are_drawn() -> None:
    model = harness(Counting())
    assert model.request("", {}).sampling == Sampling(0.0, 1.0, 256)
    assert model.request("", {"temperature": 0.6, "do_sample": False}).sampling.temperature == 0.0
    assert model.request("", {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 9}).sampling == Sampling(
        0.6, 0.95, 9
    )
    assert model.request("", {"do_sample": True, "max_gen_toks": 3}).sampling == Sampling(1.0, 1.0, 3)
    assert not model.ignored
    model.request("", {"top_k": 20, "until": []})
    assert model.ignored == {"top_k"}
    assert harness(Counting(), max_tokens=7).request("", {"max_gen_toks": 900}).sampling.max_tokens == 7


def test_unlike_requests_are_asked_apart_and_like_ones_together() -> None:
    runtime = Counting()
    harness(runtime).generate([("1", {}), ("2", {"temperature": 1.0}), ("3", {})])
    assert sorted(len(asked[0]) for asked in runtime.asked) == [1, 2]


def test_likelihood_of_a_continuation() -> None:
    runtime = Counting()
    model = harness(runtime)
    found = model.loglikelihood([("12", "34"), ("12", "35"), ("12", "4"), ("", "1")])
    likely = 10 - np.log(np.exp(10) + TOKENIZER.size - 1)
    assert [greedy for _, greedy in found] == [True, False, False, False]
    np.testing.assert_allclose([score for score, _ in found], [2 * likely, 2 * likely - 10, likely - 10, likely - 10])
    assert runtime.scored.count(TOKENIZER.encode("123")) == 1, "the same input is run once"
    assert [BOS] in runtime.scored, "a text without context follows the bos token"


def test_blanks_before_a_continuation_belong_to_it() -> None:
    assert harness(Counting()).loglikelihood([("1 ", "2")]) == harness(Counting()).loglikelihood([("1", " 2")])


def test_a_long_text_is_scored_in_windows_each_token_once() -> None:
    """Seven digits after bos in windows of three: the last window is full again, only its new token counts."""
    runtime = Counting()
    found = harness(runtime, context=3).loglikelihood_rolling(["0123456"])
    whole = harness(Counting()).loglikelihood_rolling(["0123456"])
    assert found == pytest.approx(whole)
    text = [BOS, *DIGITS[:7]]
    assert runtime.scored == [text[0:3], text[3:6], text[4:7]]


def test_what_is_too_long_loses_its_begin_and_is_counted() -> None:
    runtime = Counting()
    model = harness(runtime, context=4)
    assert model.loglikelihood([("012345", "6")])[0][1] and model.truncated == 1
    assert runtime.scored == [DIGITS[2:6]]
    assert model.generate([("01234", {"max_gen_toks": 2})]) == ["56"] and model.truncated == 2
    assert runtime.asked[0][0][0].tokens == tuple(DIGITS[3:5])
    with pytest.raises(RecipeError, match="no room for an answer"):
        harness(runtime, context=1).generate([("1", {})])


def test_an_answer_that_is_begun_is_gone_on_with() -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "The answer is"}]
    assert harness(Counting()).render(messages, False) == (
        "<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜>The answer is"
    )
    assert harness(Counting()).render(messages[:1]) == "<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜>"


def test_bos_is_not_doubled() -> None:
    runtime = Counting()
    harness(runtime).generate([("<｜begin▁of▁sentence｜>1", {})])
    assert runtime.asked[0][0][0].tokens == (BOS, DIGITS[1])


def test_rows_are_split_whatever_pieces_they_come_in() -> None:
    rows = np.arange(20, dtype=np.float32).reshape(10, 2)
    for cuts in ((10,), (1, 2, 3, 4), (4, 6), (9, 1)):
        pieces = np.split(rows, np.cumsum(cuts)[:-1])
        found = list(_split(pieces, [3, 1, 6]))
        assert [len(part) for part in found] == [3, 1, 6] and (np.concatenate(found) == rows).all()


def test_batches_of_texts_of_like_length() -> None:
    texts = [(0,) * n for n in (1, 2, TOKENS_PER_BATCH // 2, TOKENS_PER_BATCH // 2, 2 * TOKENS_PER_BATCH)]
    assert [[len(text) for text in batch] for batch in _batches(texts)] == [
        [1, 2],
        [TOKENS_PER_BATCH // 2] * 2,
        [2 * TOKENS_PER_BATCH],
    ]


def test_cut() -> None:
    assert cut("a\n\nb;c", [";", "\n\n"]) == "a"
    assert cut("abc", ["x"]) == cut("abc", []) == "abc"
