"""The Modelfile by which Ollama makes a model of a GGUF file.

Ollama's templates are written in Go. Rendering a chat template shows what it does: the text before and after a
turn of every kind is read off one conversation, and if that explains several others too it is written down in Go.
Otherwise the Modelfile has no TEMPLATE, and Ollama falls back on `tokenizer.chat_template` in the GGUF file. If a
template drops the reasoning of earlier turns, the one in Go does not: Ollama keeps reasoning apart from content.
It does not know weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from r1quant.checkpoint.artifact import generation_config
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.core.json import Config, JsonObject
from r1quant.core.thinking import OPENING
from r1quant.errors import R1QuantError
from r1quant.formats.gguf.vocabulary import puts_around

CONTEXT = {True: 32768, False: 8192}  # tokens, for a model that reasons and for one that does not
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
OLLAMA_NAMES = {"repetition_penalty": "repeat_penalty"}
R1_SAMPLING = {"temperature": 0.6, "top_p": 0.95}
SYSTEM, USER, ANSWER, AGAIN = "system text", "first question", "an answer", "second question"
Turn = tuple[str, str]
CONVERSATIONS: tuple[tuple[Turn, ...], ...] = (
    (("user", USER),),
    (("system", SYSTEM), ("user", USER)),
    (("user", USER), ("assistant", ANSWER), ("user", AGAIN)),
    (("system", SYSTEM), ("user", AGAIN), ("assistant", USER), ("user", ANSWER)),
    (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")),
)


@dataclass(frozen=True)
class Style:
    """The text around the content of a turn, by its kind.

    start    what every prompt begins with
    default  what a conversation without a system turn has in its place
    prompt   what begins the answer
    """

    start: str
    default: str
    system: Turn
    user: Turn
    assistant: Turn
    prompt: str

    def render(self, turns: Sequence[Turn]) -> str:
        around = {"system": self.system, "user": self.user, "assistant": self.assistant}
        opening = self.start if turns[0][0] == "system" else self.start + self.default
        return opening + "".join(around[role][0] + text + around[role][1] for role, text in turns) + self.prompt

    @property
    def pieces(self) -> tuple[str, ...]:
        return self.start, self.default, *self.system, *self.user, *self.assistant, self.prompt

    def go(self) -> str:
        """The same in Go's template language. An answer that comes last is one to be continued."""
        other = f"{{{{ else }}}}{self.default}" if self.default else ""
        prompt = f'{{{{ if and $last (ne .Role "assistant") }}}}{self.prompt}{{{{ end }}}}' if self.prompt else ""
        return (
            f"{self.start}{{{{ if .System }}}}{self.system[0]}{{{{ .System }}}}{self.system[1]}{other}{{{{ end }}}}"
            "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            f'{{{{ if eq .Role "user" }}}}{self.user[0]}{{{{ .Content }}}}{self.user[1]}'
            f'{{{{ else if eq .Role "assistant" }}}}{self.assistant[0]}{{{{ .Content }}}}'
            f"{{{{ if not $last }}}}{self.assistant[1]}{{{{ end }}}}{{{{ end }}}}"
            f"{prompt}{{{{ end }}}}"
        )


def modelfile(side_files: Mapping[str, bytes], config: Config, file: str) -> str:
    """The text of the Modelfile beside the GGUF file of that name. side_files: as an Artifact has them."""
    tokenizer = Tokenizer.from_files(side_files, file)
    generation = generation_config(side_files)
    style = style_of(tokenizer, _puts_bos(side_files, tokenizer))
    reasons = tokenizer.backend.token_to_id(OPENING) is not None
    lines = [f"FROM ./{file}", ""]
    if style is None:
        why = "there is none" if tokenizer.template is None else "it is not a plain sequence of turns"
        lines += [f"# No TEMPLATE: the chat template has no equal in Go ({why}).", ""]
        lines[-2] += " Ollama takes tokenizer.chat_template." if tokenizer.template else ""
    else:
        lines += [f'TEMPLATE """{style.go()}"""', ""]
    values = {key: generation[key] for key in SAMPLING if _number(generation.get(key))}
    values = values or (R1_SAMPLING if reasons else {})
    lines += [f"PARAMETER {OLLAMA_NAMES.get(key, key)} {value}" for key, value in values.items()]
    context = config.get("max_position_embeddings")
    longest = CONTEXT[reasons]
    lines.append(f"PARAMETER num_ctx {min(longest, context) if isinstance(context, int) else longest}")
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in _stops(tokenizer, generation, style)]
    return "\n".join(lines) + "\n"


def _puts_bos(side_files: Mapping[str, bytes], tokenizer: Tokenizer) -> bool:
    """Whether the runtime puts the BOS token before every prompt, so that a template must not."""
    settings = json.loads(side_files.get("tokenizer_config.json", b"{}"))
    return puts_around(json.loads(side_files["tokenizer.json"]), settings, tokenizer.specials)["bos"]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def style_of(tokenizer: Tokenizer, puts_bos: bool) -> Style | None:
    """What the chat template does, if turns are all that it does. puts_bos: the runtime puts BOS before the prompt."""
    if tokenizer.template is None:
        return None
    bos = tokenizer.specials.get("bos_token", "")

    def rendered(turns: Sequence[Turn], prompt: bool = True) -> str:
        return tokenizer.render([{"role": role, "content": content} for role, content in turns], prompt)

    try:
        start = bos if bos and rendered(CONVERSATIONS[0]).startswith(bos) else ""
        style = _read_off(rendered, start)
        if style is None or any(style.render(turns) != rendered(turns) for turns in CONVERSATIONS):
            return None
    except R1QuantError:
        return None
    if any(sign in piece for piece in style.pieces for sign in ("{{", "}}", '"""')):
        return None
    return replace(style, start="") if puts_bos else style


def _read_off(rendered: Callable[..., str], start: str) -> Style | None:
    """The style that explains a conversation with and one without a system text; None if the texts are not in it."""
    with_system, long = (rendered(turns).removeprefix(start) for turns in CONVERSATIONS[1:3])
    if any(long.count(text) != 1 for text in (USER, ANSWER, AGAIN)) or with_system.count(SYSTEM) != 1:
        return None
    before, rest = long.split(USER)
    between, rest = rest.split(ANSWER)
    after, end = rest.split(AGAIN)
    closing = rendered(CONVERSATIONS[0], False).split(USER)[-1]
    opening = _opening(rendered, closing, before)
    system, rest = with_system.split(SYSTEM)
    joint = rest.split(USER)[0]
    if not (between.startswith(closing) and end.startswith(closing)):
        return None
    if not all(text.endswith(opening) for text in (before, joint, after)):
        return None
    return Style(
        start=start,
        default=before.removesuffix(opening),
        system=(system, joint.removesuffix(opening)),
        user=(opening, closing),
        assistant=(between.removeprefix(closing), after.removesuffix(opening)),
        prompt=end.removeprefix(closing),
    )


def _opening(rendered: Callable[..., str], closing: str, before: str) -> str:
    """What a question begins with: what stands between two of them, if the template allows that."""
    try:
        between = rendered([("user", USER), ("user", AGAIN)]).split(USER)[-1].split(AGAIN)[0]
    except R1QuantError:
        return before
    return between.removeprefix(closing)


def _stops(tokenizer: Tokenizer, generation: JsonObject, style: Style | None) -> list[str]:
    """The tokens that end an answer: those that end a text, and those that begin a turn."""
    ends = generation.get("eos_token_id")
    ids = [i for i in (ends if isinstance(ends, list) else [ends]) if isinstance(i, int) and not isinstance(i, bool)]
    stops = [tokenizer.specials.get("eos_token"), *(tokenizer.backend.id_to_token(i) for i in ids)]
    if style is not None:
        added = {token.content for token in tokenizer.backend.get_added_tokens_decoder().values()}
        opening = [piece.lstrip() for piece in (style.user[0], style.user[1] + style.assistant[0])]
        stops += [token for piece in opening for token in sorted(added) if piece.startswith(token)]
    return [stop for stop in dict.fromkeys(stops) if stop]
