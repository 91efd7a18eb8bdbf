"""What forked processes of tests begin with: everything that pods and `transfer run` import (warm.py)."""

from importlib import import_module

from transfer_pod.importing import importing

with importing():
    for module in ("loop", "worker", "workers", "launcher", "rendezvous", "dataset", "vocabulary"):
        import_module(f"transfer_trainer.{module}")
    for module in ("transfer_evaluator.stage", "transfer_evaluator.tasks", "transfer_evaluator.harness", "transfer_cli.run"):
        import_module(module)
