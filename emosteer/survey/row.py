"""What the survey finds of one architecture."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "vision-language": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "encoder–decoder": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}


@dataclass(frozen=True)
class Row:
    """One architecture.

    Attributes:
        kind: a key of `KINDS`.
        model_type: of its configuration.
        verdict: "right", "wrong", "refused" (by emosteer), "not built" (with plain small sizes), "too slow".
        blocks: where they were found.
        depth, fused: how many there are, and how many are steered inside the norm that reads them.
        error: largest distance of the logits from steering by hand in float64, as a fraction of their norm.
        reason: why not.
        seconds: building, steering and checking.
    """

    kind: str
    model_type: str
    verdict: str
    blocks: str = ""
    depth: int = 0
    fused: int = 0
    error: str = ""
    reason: str = ""
    seconds: float = 0.0
