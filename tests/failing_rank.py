"""bertmon.run in which the process of rank 1 fails at its third step: a program for torchrun."""

from bertmon import distributed, run
from bertmon.training.step import GuardedUpdate

correct = GuardedUpdate.update
steps = 0


def failing(self, loss, lr):
    global steps
    steps += 1
    if distributed.rank() == 1 and steps == 3:
        raise RuntimeError("the second GPU fell off the bus")
    return correct(self, loss, lr)


if __name__ == "__main__":
    GuardedUpdate.update = failing
    run.main()
