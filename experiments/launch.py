"""Submits a command to a cluster: the words behind -- are those that a person types here.

    python experiments/launch.py --nodes=2 --tasks_per_node=8 --gpus_per_node=8 --hours=24 --partition=gpu -- \\
        experiments/train.py --config=configs/wmt14.py:big --workdir=runs/big

Slurm where there is one, else processes of this machine (--cluster=local). A job that is preempted, or comes to the
end of its hours, saves and is queued again, and then continues. Logs are in --folder. See docs/clusters.md.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import submitit
from absl import flags
from submitit.core.utils import DelayedSubmission

from experiments import command_line
from transformer_jax.errors import UserError

CLUSTER = flags.DEFINE_enum("cluster", None, ["slurm", "local"], "where; if not given, slurm if it is here")
NODES = flags.DEFINE_integer("nodes", 1, "machines", lower_bound=1)
TASKS = flags.DEFINE_integer("tasks_per_node", 1, "processes on each: on GPUs one a GPU", lower_bound=1)
GPUS = flags.DEFINE_integer("gpus_per_node", None, "GPUs of each machine")
CPUS = flags.DEFINE_integer("cpus_per_task", None, "cores of each process")
MEMORY = flags.DEFINE_float("memory_gb", None, "memory of each machine")
HOURS = flags.DEFINE_float("hours", 24.0, "until a job is stopped, and queued again", lower_bound=0.0)
PARTITION = flags.DEFINE_string("partition", None, "Slurm's")
ACCOUNT = flags.DEFINE_string("account", None, "Slurm's")
QOS = flags.DEFINE_string("qos", None, "Slurm's")
CONSTRAINT = flags.DEFINE_string("constraint", None, "Slurm's")
NAME = flags.DEFINE_string("name", "transformer_jax", "of the job")
FOLDER = flags.DEFINE_string("folder", "runs/jobs", "for the logs; seen by all machines")
WAIT = flags.DEFINE_bool("wait", False, "stay until the job has ended, and exit as it did")

MOST_TIMEOUTS = 1000  # a job that saves when its hours are over may come back so often
NOTICE_SECONDS = 120  # before its hours are over, a job is told to save


class Command:
    """A command as a job: one process of it a task, told to save when the job must go, and then queued again."""

    def __init__(self, words: Sequence[str], directory: str) -> None:
        self.words, self.directory = list(words), directory
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Runs the command to its end. Raises: RuntimeError when it fails."""
        print(shlex.join(self.words), flush=True)
        self._process = subprocess.Popen(self.words, cwd=self.directory, env={**os.environ, **self._peers()})
        # Not process.wait(): the signal that calls checkpoint() would find its lock taken.
        while self._process.poll() is None:
            time.sleep(0.2)
        status = self._process.returncode
        if status == command_line.INTERRUPTED:
            # It was told to stop by someone else, and has saved: the first task queues the job again and ends here.
            signal.raise_signal(submitit.JobEnvironment()._usr_sig())
            sys.exit(status)
        if status:
            raise RuntimeError(f"{shlex.join(self.words)} ended with status {status}.")

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit in its signal handler: lets the command save, and says what to run next time."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(ChildProcessError):  # ended, and known to have
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Command(self.words, self.directory))

    @staticmethod
    def _peers() -> dict[str, str]:
        """What jax needs to know of the tasks of a local job; those of Slurm it finds by itself."""
        tasks = os.environ.get("SUBMITIT_LOCAL_NTASKS", "1")
        if tasks == "1":
            return {}
        port = 20000 + int(os.environ["SUBMITIT_LOCAL_JOB_ID"]) % 10000
        return {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": tasks,
            "JAX_PROCESS_ID": os.environ["SUBMITIT_LOCAL_GLOBALID"],
        }


def submit(words: Sequence[str], cluster: str | None, folder: str | Path, **parameters: object) -> submitit.Job[None]:
    """Submits a command, the first of whose words is a Python file.

    Args: parameters: as submitit's AutoExecutor takes them; None is as not given.
    Raises: UserError when the file is not there, or the cluster cannot be had.
    """
    if not Path(words[0]).is_file():
        raise UserError(
            f"{words[0]} is no file; behind -- comes a command such as experiments/train.py --workdir=runs/a."
        )
    if cluster != "slurm" and shutil.which("sbatch") is None and parameters.get("nodes", 1) != 1:
        raise UserError(
            f"--nodes={parameters['nodes']}: there is no Slurm here (sbatch is not found). Run this where jobs are "
            "submitted, or use --nodes=1 for processes of this machine."
        )
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, slurm_max_num_timeout=MOST_TIMEOUTS)
        executor.update_parameters(**{key: value for key, value in parameters.items() if value is not None})
        return executor.submit(Command([sys.executable, *words], os.getcwd()))
    except (RuntimeError, ValueError, OSError, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"The job cannot be submitted: {error}") from error


def main(arguments: list[str]) -> int:
    job = submit(
        arguments,
        CLUSTER.value,
        FOLDER.value,
        name=NAME.value,
        nodes=NODES.value,
        tasks_per_node=TASKS.value,
        gpus_per_node=GPUS.value,
        cpus_per_task=CPUS.value,
        mem_gb=MEMORY.value,
        timeout_min=max(1, round(60 * HOURS.value)),
        slurm_signal_delay_s=NOTICE_SECONDS,
        slurm_partition=PARTITION.value,
        slurm_account=ACCOUNT.value,
        slurm_qos=QOS.value,
        slurm_constraint=CONSTRAINT.value,
    )
    print(f"job {job.job_id}: {job.paths.stdout} and {job.paths.stderr.name}")
    if not WAIT.value:
        return 0
    errors = [error for task in range(job.num_tasks) if (error := job.task(task).exception()) is not None]
    for error in errors:
        print(error, file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    command_line.run_main(main, ("COMMAND...",))
