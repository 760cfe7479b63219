"""What publish is asked: where to, with which records, and what cannot be found out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from r1quant.checkpoint.resolve import HUB_ID
from r1quant.core.options import Text, check, option

EVIDENCE, HUB, SAFETY = "Evidence", "Hub", "Safety"


@dataclass(frozen=True)
class PublishOptions:
    """How a model is given away. to: a folder, or owner/name on the Hub."""

    to: str
    records: tuple[Path, ...] = option(
        (),
        EVIDENCE,
        "Record of verify or bench, or a folder of them. Repeatable.",
        flag="--record",
        shown="those in and beside OUT",
    )
    base_model: str | None = option(
        None,
        EVIDENCE,
        "Model that OUT was made from, as owner/name.",
        Text("give owner/name"),
        shown="what the record of OUT says",
    )
    licence: str | None = option(
        None,
        EVIDENCE,
        "Licence of the base model, if it cannot be found out: mit, apache-2.0, ...",
        Text("give a licence such as mit"),
        flag="--license",
    )
    force: bool = option(False, SAFETY, "Publish although something speaks against it; the model card tells what.")
    dry_run: bool = option(False, SAFETY, "Upload nothing: write the folder, and say what would be uploaded.")
    private: bool = option(False, HUB, "Make a new repository private.")
    revision: str | None = option(None, HUB, "Branch that is committed to.", Text(), shown="main")
    message: str | None = option(None, HUB, "Message of the commit.", Text("give a text"), shown="what was quantized")

    def __post_init__(self) -> None:
        """Raises RecipeError naming the first value that is not possible."""
        check(self)

    @property
    def repo(self) -> str | None:
        """The repository on the Hub; None for what lies on the local disk, or begins with a dot or slash: a folder."""
        path = Path(self.to)
        named = HUB_ID.fullmatch(self.to) and not (path.exists() or path.parent.exists())
        return self.to if named else None
