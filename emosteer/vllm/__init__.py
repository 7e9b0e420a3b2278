"""Steering inside vLLM: a program a request, in its compiled graphs, offline and over HTTP (docs/vllm.md).

Installed beside vLLM this is a plugin of it. It does nothing until an engine is given banks,

    LLM(model, additional_config={"emosteer": {"banks": {"emotions": "emotions.safetensors"}}})

and then steers those requests that ask for it:

    SamplingParams(extra_args=emosteer.vllm.params(es.add("calm", 0.05) + es.cap("desperate", 0.0)))
"""

from .asking import params
from .readings import Readings, readings
from .settings import ENVIRONMENT

__all__ = ["ENVIRONMENT", "Readings", "params", "readings"]
