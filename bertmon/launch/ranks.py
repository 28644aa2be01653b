"""The processes of one launch by torchrun agree on the launch's folder; only the first one prints and writes."""

import logging
import os
import sys
import time

from bertmon import distributed
from bertmon.launch.hydra_setup import fix_moment


def join_ranks() -> None:
    """Initialize the process group; silence all processes but the first one."""
    distributed.init()
    if distributed.world_size() == 1:
        return
    fix_moment(distributed.broadcast(time.strftime("%Y-%m-%d_%H-%M-%S")))
    if distributed.rank():
        logging.disable()
        os.environ["TQDM_DISABLE"] = "1"
        sys.argv += ["hydra/job_logging=disabled", "hydra/hydra_logging=disabled", "hydra.output_subdir=null"]
