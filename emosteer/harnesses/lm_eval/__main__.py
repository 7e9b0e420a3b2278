"""The harness's own command, which knows the model type "emosteer" then."""

from lm_eval.__main__ import cli_evaluate

from . import model  # noqa: F401  registers it

if __name__ == "__main__":
    cli_evaluate()
