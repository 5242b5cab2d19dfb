"""The example sweep against the stand-in of the W&B service: `make sweep-demo`."""

from __future__ import annotations

import logging
import os
import runpy
import sys
import tempfile
from pathlib import Path

from tests.wandb_service import WandbService

TRIALS, BY_COMMAND = 12, 2


def main() -> None:
    """Runs twelve trials, two of them by `wandb agent`, and prints what killed which."""
    with tempfile.TemporaryDirectory() as folder, WandbService(Path(folder)) as service:
        os.environ.update(service.environment)
        import wandb
        from wandb.agents.pyagent import Agent

        Agent.HEARTBEAT_SLEEP_SECONDS = 0.05  # the stand-in takes any number of questions
        logging.getLogger("vizlog").setLevel(logging.WARNING)
        example = Path(__file__).parents[1] / "examples" / "wandb_sweep.py"
        runpy.run_path(str(example))["sweep"](TRIALS, BY_COMMAND)
        wandb.teardown()
        if service.unknown:
            sys.exit(f"the stand-in did not know {service.unknown}")
        sys.stdout.write("(the address leads nowhere: all of this was on this machine)\n")


if __name__ == "__main__":
    main()
