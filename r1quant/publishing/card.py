"""README.md of what is published: what it is, how good it is, how to run it, how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from r1quant.core.formatting import bytes_text
from r1quant.publishing import quality
from r1quant.publishing.evidence import BENCH, VERIFICATION, Evidence, PublishedModel
from r1quant.publishing.licence import Licence
from r1quant.publishing.metadata import metadata
from r1quant.publishing.usage import Model, advice, sections


@dataclass(frozen=True)
class ModelCard:
    """All that the card tells.

    model       what is published, and how it is run
    base_model  the model that it was made from, and base_link: where that is, where it is known
    forced      why it would have been refused; empty where nothing spoke against it
    made        of the r1quant.json that says most: recipe, calibration, versions
    """

    model: Model
    parts: Sequence[PublishedModel]
    evidence: Evidence
    licence: Licence | None
    base_model: str | None
    base_link: str | None = None
    architecture: str = ""
    forced: Sequence[str] = ()
    made: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""

    def text(self) -> str:
        blocks = [f"---\n{self._metadata()}---", f"# {self.model.name}", self._summary(), *self._warning()]
        blocks += [*self._verdict(), "## Files", self._files(), *self._quality(), *self._speed()]
        blocks += self._usage()
        blocks += ["## How it was made", self._origin(), "## Check what you downloaded", CHECK]
        blocks += ["## Licence", self._licence()]
        return "\n\n".join(block for block in blocks if block) + "\n"

    def _metadata(self) -> str:
        formats = [part.format for part in self.parts]
        tags = ["r1quant", "quantized", *formats, *(["reasoning"] if self.model.reasons else []), self.architecture]
        owner = self.model.repo.split("/")[0] if self.model.repo else None
        return metadata(self.base_model, self.licence, formats, [tag for tag in tags if tag], owner)

    def _base(self) -> str:
        return f"[{self.base_model}]({self.base_link})" if self.base_link else self.base_model or "an unnamed model"

    def _summary(self) -> str:
        kinds = "; ".join(dict.fromkeys(f"{part.format} {part.grid}".strip() for part in self.parts))
        return f"{self._base()}, quantized by r1quant {self.version}: {kinds}."

    def _warning(self) -> list[str]:
        if not self.forced:
            return []
        lines = ["> [!WARNING]", "> Published with `--force`, although:", *(f"> * {reason}" for reason in self.forced)]
        return ["\n".join(lines)]

    def _verdict(self) -> list[str]:
        found = [
            quality.verdict(record.content) for part in self.parts for record in self.evidence.of(part, VERIFICATION)
        ]
        return ["\n".join(f"**{line}**" if i == 0 else line for i, line in enumerate(dict.fromkeys(found)))]

    def _files(self) -> str:
        rows = [["part", "format", "weights", "size", "measured"]]
        for part in self.parts:
            own = bool(self.evidence.of(part, VERIFICATION))
            same = "as " + (part.same_as or "the folder") if part.same_as is not None else "no"
            equal = "" if part.same_as is None else ", bit for bit those of " + (part.same_as or "the folder itself")
            rows.append(
                [part.name or ".", part.format, part.grid + equal, bytes_text(part.nbytes), "yes" if own else same]
            )
        return quality.table(rows)

    def _quality(self) -> list[str]:
        blocks = []
        for part in self.parts:
            for record in self.evidence.of(part, VERIFICATION):
                blocks += [f"### {part.name or self.model.name}, by {record.content['backend']}"]
                blocks += [quality.table(quality.quality(record.content)), quality.about(record.content)]
                judged = quality.gates(record.content)
                blocks += [quality.table(judged)] if len(judged) > 1 else []
        return ["## Quality", *(blocks or ["It was not measured."])]

    def _speed(self) -> list[str]:
        blocks = []
        for part in self.parts:
            for record in self.evidence.of(part, BENCH):
                blocks += [f"### {part.name or self.model.name}, {quality.machine(record.content)}"]
                blocks += [quality.table(quality.speeds(record.content))]
        return ["## Speed and memory", *blocks] if blocks else []

    def _usage(self) -> list[str]:
        found = sections(self.parts, self.model)
        blocks = [block for title, text in found for block in (f"### {title}", text)]
        return ["## How to run it", advice(self.model), *blocks] if found else []

    def _origin(self) -> str:
        text = self.made.get("calibration")
        idle = {"device", "dtype", *(() if isinstance(text, Mapping) else CALIBRATED)}
        stated = (self.made.get("recipe") or {}).items()
        recipe = {key: value for key, value in stated if value not in (None, [], "") and key not in idle}
        rows = [["setting", "value"], *([key, str(value)] for key, value in recipe.items())]
        if isinstance(text, Mapping):
            used = f"{text.get('source')}, {text.get('samples')} × {text.get('seq_len')} tokens"
            rows.append(["calibration text", f"{used}, sha256 {str(text.get('sha256'))[:12]}"])
        versions = self.made.get("environment")
        if isinstance(versions, Mapping):
            rows.append(["versions", ", ".join(f"{key} {value}" for key, value in versions.items())])
        told = quality.table(rows) if len(rows) > 1 else "Its recipe is not known."
        return f"{told}\n\n`provenance.json` has all of it, with the hashes of the weights it was made from."

    def _licence(self) -> str:
        if self.licence is None:
            return "Not known. Ask the authors of the model it was made from."
        where = f" ([text]({self.licence.where}))" if self.licence.where else ""
        return (
            f"{self.licence.label}{where}, that of {self._base()}, as stated by {self.licence.origin}; it holds for "
            "this copy too. See `LICENSE`."
        )


CALIBRATED = {
    *("samples", "seq_len", "seed", "continued", "act_order", "damping"),
    *("guided", "guided_share", "draws", "corrected", "corrected_share"),
}
CHECK = """```sh
r1quant pull-check .          # every file, by SHA256SUMS and provenance.json
sha256sum -c SHA256SUMS       # the same without r1quant
```"""
