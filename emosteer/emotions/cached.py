"""The shipped corpus' bank of a model, extracted once."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from emosteer._version import __version__
from emosteer.bank import Bank
from emosteer.extraction import extract
from emosteer.models.capture import name_of
from emosteer.models.gguf import cache_folder

from .corpus import corpus


def bank(model: Any, tok: Any, *, progress: bool = True) -> Bank:
    """The directions of the shipped stories at all layers of a model, from the cache folder.

    The first call for a model, its revision and a release's corpus extracts them, which takes about
    as long as reading 50,000 words; an interrupted one goes on where it was. The cache folder is that
    of `es.load`.
    """
    stories = corpus()
    name, revision = name_of(model)
    texts = "\n".join([*(f"{s.emotion}\t{s.text}" for s in stories), *stories.neutral])
    identity = "\n".join([name, revision or "", str(getattr(model, "dtype", "")), __version__, texts])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    readable = re.sub(r"[^\w.-]+", "-", name).strip("-")[:60]
    folder = cache_folder() / "banks"
    path = folder / f"{readable}-{digest}.safetensors"
    if path.exists():
        return Bank.load(path)
    folder.mkdir(parents=True, exist_ok=True)
    found = extract(model, tok, stories, progress=progress, checkpoint=path.with_suffix(".part"))
    found.save(path)
    return found
