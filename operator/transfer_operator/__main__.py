"""The operator's process: `python -m transfer_operator`. Settings come from the environment (settings.py)."""

from __future__ import annotations

import asyncio
import logging
import sys

from transfer_api.errors import SpecError
from transfer_operator.process import Operator
from transfer_operator.settings import OperatorSettings


def main() -> int:
    """Runs until it is told to stop; 0 then, 1 when it must be started again, 2 when a setting is wrong."""
    try:
        settings = OperatorSettings.read()
    except SpecError as error:
        print(error, file=sys.stderr)
        return 2
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")

    async def run() -> int:
        return await Operator(settings).run()

    return asyncio.run(run())


if __name__ == "__main__":
    sys.exit(main())
