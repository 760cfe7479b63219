"""README.md of what is published: what it is, how good it is, how to run it, how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from r1quant.core.formatting import bytes_text
from r1quant.publishing import quality
from r1quant.publishing.evidence import Evidence, PublishedModel
from r1quant.publishing.licence import Licence
from r1quant.publishing.metadata import metadata
from r1quant.publishing.usage import Model, advice, sections
from r1quant.records.fields import Setting
from r1quant.records.quantization import Quantization


@dataclass(frozen=True)
class ModelCard:
    """All that the card tells.

    model       what is published, and how it is run
    base_model  the model that it was made from, and base_link: where that is, if it is known
    forced      why it would have been refused; empty if nothing spoke against it
    made        recipe, calibration and versions, as far as they are known
    """

    model: Model
    parts: Sequence[PublishedModel]
    evidence: Evidence
    licence: Licence | None
    base_model: str | None
    base_link: str | None = None
    architecture: str = ""
    forced: Sequence[str] = ()
    made: Quantization = field(default_factory=Quantization)
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
        lead = "> Published with `--force`, in spite of this:"
        lines = ["> [!WARNING]", lead, *(f"> * {reason}" for reason in self.forced)]
        return ["\n".join(lines)]

    def _verdict(self) -> list[str]:
        records = [record for part in self.parts for record in self.evidence.verifications(part)]
        lines = dict.fromkeys(map(quality.verdict, records))
        return ["\n".join(f"**{line}**" if i == 0 else line for i, line in enumerate(lines))]

    def _files(self) -> str:
        rows = []
        for part in self.parts:
            own = bool(self.evidence.verifications(part))
            same = "as " + (part.same_as or "the folder") if part.same_as is not None else "no"
            equal = "" if part.same_as is None else ", bit for bit those of " + (part.same_as or "the folder itself")
            rows.append(
                [part.name or ".", part.format, part.grid + equal, bytes_text(part.nbytes), "yes" if own else same]
            )
        return quality.table(("part", "format", "weights", "size", "measured"), rows)

    def _quality(self) -> list[str]:
        blocks = []
        for part in self.parts:
            for record in self.evidence.verifications(part):
                blocks.append(f"### {part.name or self.model.name}, by {record.backend}")
                blocks += [quality.comparison(record), quality.about(record), *quality.gates(record)]
        return ["## Quality", *(blocks or ["It was not measured."])]

    def _speed(self) -> list[str]:
        blocks = []
        for part in self.parts:
            for record in self.evidence.benches(part):
                blocks += [f"### {part.name or self.model.name}, {quality.machine(record)}", quality.speeds(record)]
        return ["## Speed and memory", *blocks] if blocks else []

    def _usage(self) -> list[str]:
        blocks = [block for title, text in sections(self.parts, self.model) for block in (f"### {title}", text)]
        return ["## How to run it", advice(self.model), *blocks] if blocks else []

    def _origin(self) -> str:
        text, versions = self.made.calibration, self.made.environment
        idle = IDLE if text else IDLE | CALIBRATED
        recipe = {key: value for key, value in self.made.recipe.items() if value not in (None, (), "")}
        rows = [(key, _setting(value)) for key, value in recipe.items() if key not in idle]
        if text is not None:
            size = f"{text.samples} × {text.seq_len} tokens"
            rows.append(("calibration text", f"{text.source}, {size}, sha256 {text.sha256[:12]}"))
        if versions:
            rows.append(("versions", ", ".join(f"{key} {value}" for key, value in versions.items())))
        shown = quality.table(("setting", "value"), rows) if rows else "Its recipe is not known."
        return f"{shown}\n\n`provenance.json` has all of it, with the hashes of the weights it was made from."

    def _licence(self) -> str:
        if self.licence is None:
            return "Not known. Ask the authors of the model it was made from."
        link = f" ([text]({self.licence.where}))" if self.licence.where else ""
        return (
            f"{self.licence.label}{link}, the licence of {self._base()}, as stated by {self.licence.origin}. It holds "
            "for this copy too: see `LICENSE`."
        )


def _setting(value: Setting) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


IDLE = {"device", "dtype"}  # options that say nothing of the result
CALIBRATED = {
    *("samples", "seq_len", "seed", "continued", "act_order", "damping"),
    *("guided", "guided_share", "draws", "corrected", "corrected_share"),
}
CHECK = """```sh
r1quant pull-check .          # every file, by SHA256SUMS and provenance.json
sha256sum -c SHA256SUMS       # the same without r1quant
```"""
