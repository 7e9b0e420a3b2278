"""The entry point `vllm.endpoint_plugins`: what a server can steer with, at `GET /v1/emosteer/banks`.

vLLM adds routes of plugins only where `VLLM_PLUGINS` names them; `emosteer serve` does.
"""

from __future__ import annotations

from typing import Any

from .front import FRONT


class Banks:
    """The route."""

    name = "emosteer"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Add the route."""

        @app.get("/v1/emosteer/banks")
        async def banks() -> dict[str, Any]:
            return listed()

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Nothing to prepare: the input processor has read the banks."""


def listed() -> dict[str, Any]:
    """The banks of this process's engine, as JSON can hold them.

    `{"banks": {name: {"concepts", "layers", "model"}}, "layers", "readable", "slots", "default", "adapters"}`: where
    requests may steer and be read, how many directions a program may combine, and what requests do that do not say.
    """
    deployment = FRONT.deployment
    if deployment is None:
        return {"banks": {}, "layers": [], "readable": [], "slots": 0, "default": None, "adapters": {}}
    default = deployment.settings.default
    return {
        "banks": {
            name: {
                "concepts": list(bank.names),
                "layers": list(bank.layers),
                "model": bank.provenance.get("model"),
            }
            for name, bank in deployment.banks.items()
        },
        "layers": list(deployment.layers),
        "readable": list(deployment.readable),
        "slots": deployment.settings.slots,
        "default": None if default is None else default.extra_args(),
        "adapters": {name: asked.extra_args() for name, asked in deployment.settings.adapters.items()},
    }
