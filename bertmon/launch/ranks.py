"""Coordinates the processes of a torchrun launch: all use the same folder; only rank 0 prints and writes."""

import logging
import os
import sys
import time

from bertmon import distributed
from bertmon.launch.hydra_setup import fix_timestamp


def join_ranks() -> None:
    """Initialize the process group; silence all processes except rank 0."""
    distributed.init()
    if distributed.world_size() == 1:
        return
    fix_timestamp(distributed.broadcast(time.strftime("%Y-%m-%d_%H-%M-%S")))
    if distributed.rank():
        logging.disable()
        os.environ["TQDM_DISABLE"] = "1"
        sys.argv += ["hydra/job_logging=disabled", "hydra/hydra_logging=disabled", "hydra.output_subdir=null"]
