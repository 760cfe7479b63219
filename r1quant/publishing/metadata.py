"""The metadata of a model card, in the words and by the rules of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence

from r1quant.core.json import JsonObject
from r1quant.publishing.licence import Licence

LIBRARIES = {"gguf": "gguf", "onnx": "onnxruntime-genai"}  # else transformers
BLOCK = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)


def metadata(
    base_model: str | None, licence: Licence | None, formats: Sequence[str], tags: Sequence[str], owner: str | None
) -> str:
    """The YAML between the dashes. formats: of the parts, the first one first."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=base_model,
        license=licence.id if licence else None,
        license_name=licence.name if licence else None,
        license_link=licence.link if licence else None,
        library_name=LIBRARIES.get(formats[0], "transformers") if formats else None,
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys(tags)),
    )
    if base_model:
        data["base_model_relation"] = "quantized"
    if owner:
        data["quantized_by"] = owner
    return f"{data}\n"


def read(card: str) -> JsonObject:
    """The metadata of a card; empty if it has none that can be read."""
    from huggingface_hub import RepoCard

    try:
        return dict(vars(RepoCard(card, ignore_metadata_errors=True).data)) if BLOCK.match(card) else {}
    except Exception:  # of the YAML parser, which this room does not know
        return {}
