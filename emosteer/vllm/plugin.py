"""The entry point `vllm.general_plugins`: what vLLM calls in each of its processes."""

from __future__ import annotations

from functools import wraps
from typing import Any

from . import front, support, watching
from .ledger import keep
from .settings import KEY, Settings
from .support import Unsupported

# Set where a class is patched, so that no process patches twice.
_MARK = "emosteer_patched"


def register() -> None:
    """Have engines with banks steer; engines without run vLLM's own code.

    Where the release of vLLM is another than this was written for, nothing is patched but the making of an engine's
    configuration, which then refuses banks.
    """
    import vllm
    from vllm.engine.arg_utils import EngineArgs

    if getattr(EngineArgs, _MARK, False):
        return
    EngineArgs.emosteer_patched = True
    EngineArgs.create_engine_config = _configuring(EngineArgs.create_engine_config)
    if support.supported(vllm.__version__):
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.worker.worker_base import WorkerWrapperBase

        front.patch()
        watching.patch()
        Scheduler.__init__ = _keeping(Scheduler.__init__)
        WorkerWrapperBase.init_device = _loading(WorkerWrapperBase.init_device)


def _configuring(create: Any) -> Any:
    """`EngineArgs.create_engine_config`, which takes settings from the environment too and checks them."""

    @wraps(create)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        import vllm

        plain = isinstance(self.additional_config, dict)
        given = self.additional_config.get(KEY) if plain else None
        if given is None:
            given = Settings.in_environment()
        if given is None:
            return create(self, *args, **kwargs)
        support.check_release(vllm.__version__)
        settings = Settings.read(given)
        if not plain:
            raise Unsupported(
                f"additional_config must be a dict to hold emosteer's banks, got {self.additional_config!r}"
            )
        self.additional_config = {**self.additional_config, KEY: settings.plain("")}
        config = create(self, *args, **kwargs)
        support.check(config, settings)
        deployment = front.deployment_of(config)
        assert deployment is not None
        # Part of the key of the compile cache, and what workers compare their own files with.
        config.additional_config[KEY] = settings.plain(deployment.digest)
        return config

    return create_engine_config


def _loading(init_device: Any) -> Any:
    """`WorkerWrapperBase.init_device`, after which the worker has the runner that will load the model."""

    @wraps(init_device)
    def init_and_watch(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = init_device(self, *args, **kwargs)
        settings = Settings.of(self.vllm_config.additional_config)
        if settings is not None:
            runner = self.worker.model_runner
            load = runner.load_model

            @wraps(load)
            def load_model(*args: Any, **kwargs: Any) -> Any:
                from .attaching import steer

                done = load(*args, **kwargs)
                runner.emosteer = steer(runner, settings)
                return done

            runner.load_model = load_model
        return found

    return init_and_watch


def _keeping(make: Any) -> Any:
    """`Scheduler.__init__`, in the engine's process: it ends with its client, and keeps what is read where it reads."""

    @wraps(make)
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        make(self, vllm_config, *args, **kwargs)
        settings = Settings.of(vllm_config.additional_config)
        if settings is None:
            return
        watching.end_with_client()
        if settings.readable is not None:
            deployment = front.deployment_of(vllm_config)
            assert deployment is not None
            keep(self, deployment)

    return __init__
