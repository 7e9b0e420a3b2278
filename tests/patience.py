"""How long a test waits for what must come: a busy machine is no reason to fail, and pytest waits longer."""

PATIENCE = 800.0  # seconds; `faulthandler_timeout` in pyproject.toml ends a test after 900
