"""`python -m bertmon.run`: the Hydra entry point. launch/preflight.py checks a launch, launch/job.py runs its jobs."""

import os
import signal
import sys

import hydra
from omegaconf import DictConfig

from bertmon.errors import exit_after_closed_pipe
from bertmon.launch import command_line, final_summary, hydra_setup, threads


@hydra.main(version_base="1.3", config_path="pkg://bertmon.conf", config_name="config")
def _task(composed: DictConfig) -> float:
    from bertmon.launch.job import run_job

    return run_job(composed).objective


def _terminate(number: int, frame: object) -> None:
    from bertmon.result import Terminated

    raise Terminated(128 + number)


def main() -> None:
    """The command line."""
    threads.configure_threads()
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1"):  # batch scripts ask Slurm for SIGUSR1 before the time limit
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _terminate)
    hydra_setup.register()
    _join_processes()
    sys.argv[1:] = command_line.flags_first(command_line.with_own_data_defaults(sys.argv[1:]))
    show_traceback = os.environ.setdefault("HYDRA_FULL_ERROR", "")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise errors, which it would print unsanitized
    try:
        with final_summary.print_at_exit():
            _launch(show_traceback=bool(show_traceback))
    except KeyboardInterrupt:  # also a second one, while the report is written
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        exit_after_closed_pipe()
    finally:
        os.environ["HYDRA_FULL_ERROR"] = show_traceback


def _launch(*, show_traceback: bool) -> None:
    try:
        command_line.check_arguments(sys.argv[1:])
        _task()
    except BrokenPipeError:
        raise
    except Exception as error:
        if show_traceback:
            raise
        print(command_line.format_error(error), file=sys.stderr)
        sys.exit(1)


def _join_processes() -> None:
    """If torchrun has started several processes, join them; only rank 0 prints and writes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from bertmon.launch.ranks import join_ranks

        join_ranks()


if __name__ == "__main__":
    from bertmon.run import main as imported_main  # workers look up functions by module name, which __main__ is not

    imported_main()
