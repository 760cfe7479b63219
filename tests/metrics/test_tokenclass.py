"""Which tokens of a text are reasoning, and which its answer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from r1quant.metrics.tokenclass import classes
from r1quant.records.text import ANSWER, OTHER, THINKING

OPEN, CLOSE, END = 90, 91, 1
LETTERS = {"o": OTHER, "t": THINKING, "a": ANSWER}


def read(found: dict[str, npt.NDArray[np.bool_]]) -> str:
    """One letter for each predicted token, which has to be of exactly one class."""
    assert set(found) == {OTHER, THINKING, ANSWER}
    assert (np.sum(list(found.values()), axis=0) == 1).all()
    letters = np.empty(len(found[OTHER]), "U1")
    for letter, name in LETTERS.items():
        letters[found[name]] = letter
    return "".join(letters)


def test_a_document_with_reasoning_and_an_answer() -> None:
    tokens = np.array([[5, 6, OPEN, 7, 8, CLOSE, 9, 10, END, 5, 6]])
    assert read(classes(tokens, OPEN, CLOSE, {END})) == "oottt" + "aaa" + "oo", "the end belongs to the answer"


def test_reasoning_goes_on_in_the_next_window() -> None:
    """The first token of a window is not predicted, but counts as what came before."""
    tokens = np.array([[5, OPEN, 7, 8], [7, 7, 7, 7], [7, CLOSE, 9, 9], [END, 5, 6, OPEN], [7, CLOSE, 9, END]])
    assert read(classes(tokens, OPEN, CLOSE, {END})) == "ott" + "ttt" + "taa" + "ooo" + "taa"


def test_tags_in_the_token_that_is_not_predicted() -> None:
    tokens = np.array([[OPEN, 7, 8], [CLOSE, 9, 9], [END, 5, 5]])
    assert read(classes(tokens, OPEN, CLOSE, {END})) == "ttaaoo"


def test_the_end_of_a_document_ends_reasoning_that_never_closed() -> None:
    tokens = np.array([[5, OPEN, 7, END, 5, 5]])
    assert read(classes(tokens, OPEN, CLOSE, {END})) == "ottoo"


def test_an_answer_without_reasoning_before_it_and_reasoning_again() -> None:
    tokens = np.array([[5, CLOSE, 9, OPEN, 7, CLOSE, 9]])
    assert read(classes(tokens, OPEN, CLOSE, ())) == "oaatta"


def test_a_tokenizer_without_the_tags_classifies_nothing() -> None:
    tokens = np.array([[5, OPEN, 7, CLOSE]])
    for opening, closing in ((None, CLOSE), (OPEN, None), (None, None)):
        assert classes(tokens, opening, closing, {END}) == {}


@given(st.lists(st.sampled_from((5, OPEN, CLOSE, END)), min_size=24, max_size=24), st.sampled_from((2, 3, 4, 6, 8, 12)))
def test_windows_do_not_change_what_a_token_is(stream: list[int], width: int) -> None:
    whole = "?" + read(classes(np.array([stream]), OPEN, CLOSE, {END}))
    cut = read(classes(np.array(stream).reshape(-1, width), OPEN, CLOSE, {END}))
    assert cut == "".join(letter for place, letter in enumerate(whole) if place % width)
