"""The harness's own command line, with the model `transfer`: `python -m transfer_evaluator.harness --model transfer …`."""

from lm_eval.__main__ import cli_evaluate

if __name__ == "__main__":
    cli_evaluate()  # the package is imported before this module: the model is registered
