"""Whether an answer is right: the last box of what stands after the reasoning, against what is expected.

Numbers are compared exactly, as a person reads them: `042`, `42.0`, `42^\\circ`, `\\text{42}` and `\\dfrac{84}{2}` are
42. For all other expressions math-verify decides, in a process of its own: its timeouts are signals, which only a
main thread can have, and no signal ends a power tower that is being worked out. It does not know models.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import re
import subprocess
import sys
import threading
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

from r1quant.core.thinking import CLOSING, OPENING

BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(\d+))")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # or a character that is escaped, and so is none
LONGEST = 200  # characters of an answer that is worth comparing; a box around a whole page is no answer
SECONDS, START_SECONDS = 10.0, 120.0  # for one comparison, and for math-verify to load
MEMORY = 4 << 30  # bytes that the comparing process may use, if the system can limit that

GROUPED = re.compile(r"(?<![\d.])(\d{1,3})((?:(?:\{,\}|,|\\,|\\ |\\!| )+\d{3})+)(?![\d{])")
WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|rm|operatorname)\b")
SHELLS = re.compile(
    r"\\(?:color|textcolor)\s*\{[^{}]*\}|\\(?:bf|underline|overbrace|displaystyle|textstyle|large|Large)\b"
)
SPACES = re.compile(r"\\[,;:!> ]|\\q?quad\b|~|\\(?:left|right|big|Big)\b|\\left(?=[(\[])|\\right(?=[)\]])")
SIGNS = {"°": r"^\circ", "º": r"^\circ", "²": "^2", "³": "^3", "−": "-", "–": "-", "—": "-", "﹣": "-"}
DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b")
MODULUS = re.compile(r"\(\s*\\?mod\b[^()]*\)|\\[pb]?mod\s*(?:\{[^{}]*\}|\d+)|\bmod\s*\d+")
# Words that change the value of the number beside them; a box with one of them is not simply that number.
CHANGING = re.compile(
    r"\b(?:or|and|to|not|no|non|none|minus|negative|plus|about|approximately|around|nearly|roughly|almost|between|than|"
    r"least|most|more|less|over|under|above|below|hundreds?|thousands?|millions?|billions?|trillions?|dozens?|half|"
    r"third|thirds|quarters?|times|squared|cubed|factorial|point|base|undefined|infinite)\b"
    r"|[或和不非负負约約万萬亿億千百半无無]",
    re.IGNORECASE,
)
# A letter that is not set as text is a variable, and so are two or three unless they are one of these.
UNITS = frozenset(("mm", "cm", "dm", "km", "mg", "kg", "ml", "ft", "in", "yd", "mi", "mph", "deg", "rad", "sec", "min"))
NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"
LETTERS = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]+")
TEXT = re.compile(r"\\[a-zA-Z]+\s*\{[^{}]*\}")
SINGLE = re.compile(r"\\(?:text|textrm|mathrm|mbox|rm)\s*\{\s*[mshgLNVW]\s*\}")  # metres, seconds, ...
AMONG_WORDS = re.compile(
    rf"(?:[^\W\d_\s][^\d\\+*<>-]*?[\s:：是为為])?\s*({NUMBER})"
    r"(?:\s*[^\W\d_][^\d\\+*=<>-]*(?:\^\s*[23]|/[^\W\d_]+)?)?\s*[.。]?"
)
BESIDE = re.compile(rf"{NUMBER}\s*([A-Za-z]+)")
PLAIN = re.compile(NUMBER)
QUOTIENT = re.compile(
    rf"([-+]?)\\[dtc]?frac(?:\{{({NUMBER})\}}|(\d))\s*(?:\{{({NUMBER})\}}|(\d))|({NUMBER})(?:/|\\div)({NUMBER})"
)


@dataclass(frozen=True)
class Grade:
    """answer is what was given, a number in its shortest form, other expressions as written; None if there was none."""

    answer: str | None
    right: bool


def after_think(text: str, thinking: bool = False) -> str | None:
    """What stands after the reasoning; None if the reasoning did not end.

    thinking  whether the prompt has opened `<think>` already, so that a text without tags is all reasoning
    """
    opened, closed = text.rfind(OPENING), text.rfind(CLOSING)
    if opened > closed or (closed < 0 and thinking):
        return None
    return text[closed + len(CLOSING) :] if closed >= 0 else text


def final_answer(text: str, thinking: bool = False) -> str | None:
    """The content of the last box after the reasoning that is closed and not empty; None if there is none."""
    answer = after_think(text, thinking) or ""
    closed = _closed(answer)
    for box in reversed(list(BOX.finditer(answer))):
        content = box[1] or answer[box.end() : closed.get(box.end() - 1, box.end())].strip()
        if content:
            return content
    return None


def grade(text: str, answer: str, thinking: bool = False) -> Grade:
    """What a completion answers, and whether it is `answer`. Never raises.

    If a number is expected, another number is wrong however near it is; 42 % is 42 as well as 0.42. A comparison
    that takes longer than `SECONDS` is wrong.
    """
    found = final_answer(text, thinking)
    if found is None:
        return Grade(None, False)
    values, expected = _numbers(found), _numbers(answer)
    given = str(values[0]) if values else re.sub(r"\s+", " ", found)
    if values and expected:
        return Grade(given, bool(set(values) & set(expected)))
    if given == re.sub(r"\s+", " ", answer.strip()):
        return Grade(given, True)
    if (expected and _unlike_a_number(found)) or _unreadable(found) or _unreadable(answer):
        return Grade(given, False)
    return Grade(given, _equal(_spelled(found), _spelled(answer)))


def _closed(text: str) -> dict[int, int]:
    """Where the brace is that closes the one at a place, of those that are closed. One pass, however many are not."""
    opened, found = list[int](), dict[int, int]()
    for brace in BRACE.finditer(text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            found[opened.pop()] = brace.start()
    return found


def _spelled(content: str) -> str:
    """Compatible forms of characters made one, dollars of inline mathematics and other wrapping taken off."""
    text = content
    for sign, meaning in SIGNS.items():
        text = text.replace(sign, meaning)
    text = unicodedata.normalize("NFKC", text).replace("\u2044", "/").strip()
    text = re.sub(r"^\\[(\[](.*)\\[)\]]$", r"\1", text, flags=re.DOTALL).strip()
    text = re.sub(r"(?<!\\)\$", "", text).strip()
    box = BOX.match(text)
    if box and not box[1] and (end := _closed(text).get(box.end() - 1)) is not None:
        text = text[box.end() : end]
    return re.sub(r"(?<!\\)[.,;。，]$|(?<!\\)\\$", "", text).strip()


def _unreadable(content: str) -> bool:
    """Whether it is no expression: empty, a page, or with brackets that do not pair, by number alone: [0, 1) pairs."""
    opened, closed = (sum(map(content.count, brackets)) for brackets in ("([", ")]"))
    return not content.strip() or len(content) > LONGEST or opened != closed


def _unlike_a_number(content: str) -> bool:
    """Whether words change what is in the box, or variables are left in it, so that it cannot be one number."""
    text = _spelled(content)
    variables = LETTERS.search(TEXT.sub("", text.rpartition("=")[2]))
    return bool(variables or CHANGING.search(re.sub(r"\\[a-zA-Z]+|[{}]", " ", text)))


def _numbers(content: str) -> tuple[Fraction, ...]:
    """What number a person reads, the likeliest reading first; empty if it is not one number."""
    text = _spelled(content)
    if len(text) > LONGEST:
        return ()
    text = MODULUS.sub("", DEGREES.sub("", SHELLS.sub("", text)))
    text = GROUPED.sub(lambda m: m[1] + re.sub(r"\D", "", m[2]), text)
    text = SPACES.sub(" ", text)
    percent = "%" in text
    text = re.sub(r"\\?%|\\\$|[€£¥]|_\{?10\}?$", "", text)
    if not re.search(r"[,;]|\\(?:in|ge|le|ne|geq|leq|neq|pm|mp)\b|[<>≤≥≠±]", text):
        text = re.split(r"=|\\equiv\b|\\to\b|\\implies\b|\\Rightarrow\b", text)[-1]
    text = re.sub(r"\s*(/|\\div\b)\s*", r"\1", _wordless(text)).strip()
    text = re.sub(r"(?<=\d)\.$", "", text)
    while (wrapped := re.fullmatch(r"\((.*)\)|\{(.*)\}", text)) and not re.search(
        r"[(){}]", wrapped[1] or wrapped[2] or ""
    ):
        text = (wrapped[1] or wrapped[2] or "").strip()
    value = _value(re.sub(r"^([-+])\s+", r"\1", text))
    if value is None:
        return ()
    return (value, value / 100) if percent else (value,)


def _wordless(text: str) -> str:
    """Without the words and units around a number; unchanged if they say something of its value."""
    words = re.sub(r"[{}]", " ", WORDS.sub(" ", SINGLE.sub(" unit ", text)))
    label = re.sub(r"^\s*\(\s*[A-Z]\s*\)\s*", "", words)  # of a choice: (C) 42
    found = AMONG_WORDS.fullmatch(label.strip())
    if not found or CHANGING.search(label) or "\\" in label:
        return text
    beside = BESIDE.search(TEXT.sub("", text))
    if beside and len(beside[1]) < 4 and beside[1].lower() not in UNITS:
        return text
    return found[1]


def _value(text: str) -> Fraction | None:
    if PLAIN.fullmatch(text):
        return Fraction(text)
    found = QUOTIENT.fullmatch(text)
    if not found:
        return None
    sign, *parts = found.groups()
    above, below = (Fraction(part) for part in parts if part)
    return (-above if sign == "-" else above) / below if below else None


class _Process:
    """math-verify behind a pipe, one comparison at a time; started when it is first needed, ended when it is late."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: subprocess.Popen[str] | None = None
        atexit.register(self.stop)

    def equal(self, found: str, expected: str) -> bool:
        with self.lock:
            if self.running and self.running.poll() is not None:
                self.stop()
            try:
                process = self.running or self._start()
                assert process.stdin is not None
                process.stdin.write(json.dumps([found, expected]) + "\n")
                process.stdin.flush()
                reply = self._line(process, SECONDS)
            except OSError:
                reply = ""
            if not reply:
                self.stop()
            return reply == "equal"

    def stop(self) -> None:
        process, self.running = self.running, None
        if process:
            with contextlib.suppress(BrokenPipeError), process:  # what it was never told of is still in the pipe
                process.kill()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8",
        )  # fmt: skip
        self.running = process
        self._line(process, START_SECONDS)
        return process

    def _line(self, process: subprocess.Popen[str], seconds: float) -> str:
        """A line of its answer; empty if it has died, which it does after so many seconds."""
        assert process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            return process.stdout.readline().strip()
        finally:
            timer.cancel()


_process = _Process()


@lru_cache(1 << 14)
def _equal(found: str, expected: str) -> bool:
    return _process.equal(found, expected)


def _serve() -> None:
    """Compares pairs of LaTeX expressions, one JSON list [found, expected] a line, until the input ends."""
    import logging

    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    print("ready", flush=True)
    for line in sys.stdin:
        found, expected = json.loads(line)
        reply = "different"
        with contextlib.suppress(Exception, MemoryError):
            left, right = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (expected, found))
            if verify(left, right, timeout_seconds=None):
                reply = "equal"
        print(reply, flush=True)


if __name__ == "__main__":
    _serve()
