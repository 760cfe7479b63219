"""What looks like a secret is found, and what does not is left alone. The samples are put together here."""

from __future__ import annotations

import pytest

from r1quant.publishing.licence import Licence, of_card, of_text, reference
from r1quant.publishing.metadata import read
from r1quant.publishing.paths import public
from r1quant.publishing.secrets import found

X = "aB3" * 14
SECRETS = {
    "a Hugging Face token": "hf" + "_" + X[:34],
    "an API key (sk-...)": "sk" + "-proj-" + X,
    "an AWS access key": "AK" + "IA" + "Q7" * 8,
    "an AWS secret key": "aws_secret" + "_access_key = " + X[:40],
    "a GitHub token": "gh" + "p_" + X[:36],
    "a Google API key": "AI" + "za" + X[:35],
    "a Slack token": "xo" + "xb-" + X[:24],
    "a private key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "a bearer token": "Authorization: Bea" + "rer " + X,
    "a password in a URL": "https://someone:" + "pass" + "word@example.com/x",
    "a token in a URL": "https://example.com/x?a=1&" + "token=" + X,
    "the path of a home directory": "/ho" + "me/alice/models/x",
}
HARMLESS = (
    "hf_transfer and sk-learn, https://huggingface.co/a/b?download=true, the home/ folder and ~/models, "
    '{"a": "/home"}, AKIA, risk-averse-and-very-long-words-with-hyphens, tokens=1024, bearer of news, '
    "https://user@host/x, <|begin_of_text|>, https://example.com/home/alice"
)


@pytest.mark.parametrize(("kind", "text"), SECRETS.items(), ids=list(SECRETS))
def test_each_kind_is_found_with_its_line(kind: str, text: str) -> None:
    assert (kind, 2) in found(f"first line\nsecond: {text}\n".encode())
    assert (kind, 1) in found(f'{{"x": "{text}"}}'.encode())


@pytest.mark.parametrize(
    "path", ["/ro" + "ot/x", "/Us" + "ers/bob/x", "C:\\Us" + "ers\\bob", "C:\\\\Us" + "ers\\\\bob"]
)
def test_home_directories_of_every_system(path: str) -> None:
    assert found(path.encode())


def test_the_harmless_is_left_alone() -> None:
    assert found(HARMLESS.encode()) == []


def test_records_lose_the_places_where_things_lay() -> None:
    told = {"out": "/ho" + "me/al/q", "n": 1, "text": ["../../ho" + "me/al/t.txt", "a/b", "x / y"], "w": "C:\\m\\q"}
    assert public(told) == {"out": "q", "n": 1, "text": ["t.txt", "a/b", "x / y"], "w": "q"}


def test_what_licences_let_be_passed_on() -> None:
    assert Licence("mit").refused is None and Licence("llama3.1").refused is None
    assert Licence("other", "deepseek").refused is None
    assert "forbids" in str(Licence("cc-by-nd-4.0").refused)
    for unknown in (Licence("other", "my-own"), Licence("other"), Licence("made-up-1.0")):
        assert "not one that is known" in str(unknown.refused)


def test_licences_are_read_from_cards_and_texts() -> None:
    card = "---\nlicense: other\nlicense_name: my-own\nlicense_link: https://example.com\n---\n# x\n"
    assert of_card(read(card), "a card") == Licence("other", "my-own", "https://example.com", "a card")
    assert of_card(read("---\nlicense: [mit]\n---\n"), "") == Licence("mit")
    for nothing in (
        "# x",
        "---\nlicense: unknown\n---\n",
        "---\ntags: [a]\n---\n",
        "---\n: [\n---\n",
        "---\n- a\n---\n",
    ):
        assert of_card(read(nothing), "") is None
    apache = "      Apache License\n   Version 2.0, January 2004\n"
    assert of_text(apache, "a file") == Licence("apache-2.0", origin="a file")
    assert of_text("all rights reserved", "") is None


def test_no_licence_text_is_made_up() -> None:
    told = reference(Licence("apache-2.0", origin="the card of a/b"))
    assert "https://www.apache.org/licenses/LICENSE-2.0" in told and "the card of a/b" in told
    assert "Copyright" not in told
