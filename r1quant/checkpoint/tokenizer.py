"""A model's own tokenizer and chat template, from the files that travel with its weights.

The template runs in jinja2's immutable sandbox, with the helpers that templates in the wild expect; the date that a
template may ask for is fixed, so that the same messages give the same text on any day.
It does not know weights, and it knows of calibration only that a trace must keep its reasoning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.core.thinking import CLOSING, OPENING
from r1quant.errors import CalibrationError, CheckpointError

if TYPE_CHECKING:
    import jinja2

TODAY = datetime(2025, 1, 1)
Message = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to token ids and back, messages to text.

    source    the model's name, for messages
    specials  the named special tokens: bos_token, eos_token, ...
    template  the chat template, None if the model has none
    """

    source: str
    specials: Mapping[str, str]
    template: str | None = field(repr=False)
    backend: Any = field(repr=False)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Tokenizer:
        return cls.from_files(checkpoint.side_files, checkpoint.source)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], source: str) -> Tokenizer:
        """From the contents of tokenizer.json and the files beside it, by name.

        Raises CheckpointError if one of them is missing or cannot be read.
        """
        import tokenizers

        if "tokenizer.json" not in files:
            raise CheckpointError(
                f"{source} has no tokenizer.json",
                "download it; if a model has only a tokenizer.model, transformers' AutoTokenizer converts it",
            )
        try:
            backend = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"])
        except Exception as error:  # the package raises nothing narrower
            raise CheckpointError(
                f"{source}: tokenizer.json cannot be read: {_first_line(error)}", "download the file again"
            ) from None
        backend.no_padding()
        backend.no_truncation()
        config = _object(files, "tokenizer_config.json", source)
        specials = _specials(_object(files, "special_tokens_map.json", source)) | _specials(config)
        for name in ("bos_token", "eos_token"):
            if name in specials and backend.token_to_id(specials[name]) is None:
                raise CheckpointError(
                    f"{source}: {name} is {specials[name]!r}, which tokenizer.json does not have",
                    "download tokenizer.json and tokenizer_config.json again, both from the same place",
                )
        return cls(source, specials, _template(files, config, source), backend)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids. Special tokens written out in the text are recognised; only `special` adds any around it."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=special).ids
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        text: str = self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)
        return text

    @property
    def size(self) -> int:
        """How many tokens there are, added ones included. A model's embedding may be padded beyond that."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def eos_id(self) -> int | None:
        return self._id("eos_token")

    @property
    def bos_id(self) -> int | None:
        return self._id("bos_token")

    def _id(self, name: str) -> int | None:
        return int(self.backend.token_to_id(self.specials[name])) if name in self.specials else None

    @property
    def has_chat_template(self) -> bool:
        return self.template is not None

    @property
    def thinking_marks(self) -> tuple[int | None, int | None]:
        """The tokens that open and close the reasoning; None for one that the vocabulary does not have."""
        return self.backend.token_to_id(OPENING), self.backend.token_to_id(CLOSING)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The messages in the model's chat format. Raises CalibrationError if the template cannot."""
        if self.template is None:
            raise CalibrationError(
                f"{self.source} has no chat template", 'give plain text, or lines of the form {"text": ...}'
            )
        try:
            return _compiled(self.template).render(
                {
                    **self.specials,
                    "messages": [dict(message) for message in messages],
                    "add_generation_prompt": add_generation_prompt,
                    "tools": None,
                    "documents": None,
                }
            )
        except Exception as error:  # a template is somebody's program: it can fail in any way
            raise CalibrationError(
                f"the chat template of {self.source} failed: {_first_line(error)}",
                "give messages with the roles and the order that this model's template accepts",
            ) from None

    def render_trace(self, messages: Sequence[Message], ended: bool = True) -> str:
        """The messages with the reasoning of the last answer kept; without the eos token if it has not ended.

        R1's own template cuts an assistant's turn down to what follows `</think>`. So the last assistant turn is
        appended as it stands, then the eos token, to what the model would have been prompted with. Reasoning given
        apart from the answer, as `reasoning_content`, is put back in front of it.
        """
        if not messages or messages[-1].get("role") != "assistant":
            return self.render(messages, add_generation_prompt=False)
        prefix = self.render(messages[:-1], add_generation_prompt=True)
        answer = trace_of(messages[-1])
        if prefix.rstrip("\n").endswith(OPENING) and answer.startswith(OPENING):
            answer = answer.removeprefix(OPENING)
            if prefix.endswith("\n"):
                answer = answer.lstrip("\n")
        return prefix + answer + (self.specials.get("eos_token", "") if ended else "")


def trace_of(message: Message) -> str:
    """An assistant's turn as the model would have written it, reasoning first."""
    content, reasoning = message.get("content") or "", message.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        return f"{OPENING}\n{reasoning.strip()}\n{CLOSING}\n\n{content}"
    return str(content)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _json(files: Mapping[str, bytes], name: str, source: str) -> Any:
    try:
        return json.loads(files[name])
    except ValueError:
        raise CheckpointError(f"{source}: {name} is not valid JSON", "download the file again") from None


def _object(files: Mapping[str, bytes], name: str, source: str) -> dict[str, Any]:
    """A JSON object, empty if there is no such file."""
    if name not in files:
        return {}
    value = _json(files, name, source)
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: {name} is not a JSON object", "download the file again")
    return value


def _specials(config: Mapping[str, Any]) -> dict[str, str]:
    """The entries `*_token`; each is a string, or an object whose `content` is the string."""
    found = {}
    for name, entry in config.items():
        token = entry.get("content") if isinstance(entry, dict) else entry
        if name.endswith("_token") and isinstance(token, str) and token:
            found[name] = token
    return found


def _template(files: Mapping[str, bytes], config: Mapping[str, Any], source: str) -> str | None:
    """chat_template.jinja goes before chat_template.json, and that before tokenizer_config.json."""
    if "chat_template.jinja" in files:
        try:
            return files["chat_template.jinja"].decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{source}: chat_template.jinja is not UTF-8", "download the file again") from None
    entry = _object(files, "chat_template.json", source).get("chat_template", config.get("chat_template"))
    if isinstance(entry, list):
        named = {e.get("name"): e.get("template") for e in entry if isinstance(e, dict)}
        entry = named.get("default", next(iter(named.values())) if len(named) == 1 else None)
    return entry if isinstance(entry, str) else None


@lru_cache(maxsize=4)
def _compiled(template: str) -> jinja2.Template:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what a model wrote, for training; here its body is simply output."""

        tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise ValueError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form: str) -> str:
        return TODAY.strftime(form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment.from_string(template)
