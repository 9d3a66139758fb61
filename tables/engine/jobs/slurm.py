"""The executor that submits a plan to a Slurm cluster, by submitit: one job per encoder and per
evaluation, and one that writes the table.

Evaluations wait for their encoder (Slurm's dependencies), the table for all. A job that is
preempted, or whose time is over, is requeued and resumes from its last checkpoint: Slurm sends
SIGUSR2 some time before, the training saves at the end of its step and hands the signal on to
submitit. ``jobs.json`` in the folder of the jobs' logs remembers what was submitted, so that the
same command given again submits only what neither exists nor is on its way."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pretrain.recipes import common
from protobench.runtime import files
from protobench.runtime.errors import Terminated, UserError
from tables.engine.jobs import work
from tables.engine.jobs.plan import EvalTask, Job
from tables.engine.jobs.rehearsal_report import Report
from tables.engine.jobs.work import RunContext
from tables.engine.pages import publish
from tables.engine.schema import Exhibit

GRACE_SECONDS, REQUEUE_SECONDS = 3600.0, 60.0
"""How long a job that has saved waits for the scheduler to end it, and how long its other processes
wait for the main one to have it requeued."""
WARNING_SECONDS = 180
"""How long before its time is over a job is told to stop: enough for a step and a checkpoint of
some hundred MB."""


@dataclass(frozen=True)
class Slurm:
    """Jobs instead of processes of this machine."""

    slurm: bool = False
    """submit what is missing as jobs, one per encoder and per evaluation (needs the extra slurm),
    and return"""
    slurm_partition: str | None = None
    slurm_account: str | None = None
    slurm_qos: str | None = None
    slurm_gpus: int = 1
    """GPUs of a pretraining job, on each of its nodes; one process each, which share the batch"""
    slurm_nodes: int = 1
    """nodes of a pretraining job"""
    slurm_score_gpus: int = 1
    """GPUs of a scoring job"""
    slurm_cpus: int = 8
    """CPU cores per GPU"""
    slurm_memory: int = 32
    """GB per GPU"""
    slurm_hours: float = 24.0
    """after so long a job is requeued"""
    slurm_cluster: Literal["slurm", "local"] = "slurm"
    """local: the same as processes of this machine, one job after the other: to try it out, or to
    use all of its GPUs"""


@dataclass(frozen=True)
class SlurmJob:
    """What a job does: an encoder's pretraining, or one of its evaluations. Pickled by submitit,
    which calls it in each process."""

    job: Job
    task: EvalTask | None
    context: RunContext

    @property
    def name(self) -> str:
        """For logs and the list of jobs; different for different jobs."""
        encoder = f"{self.job.row.name}-seed{self.job.seed}-{self.job.identity[:8]}"
        return (
            f"{encoder}-{self.task.evaluation}-{self.task.dataset}-{self.task.key[:8]}"
            if self.task
            else encoder
        )

    @property
    def entry(self) -> str:
        """In the list of jobs: a record may be wanted in several folders of results."""
        return f"{self.name} in {self.context.results.absolute()}" if self.task else self.name

    def __call__(self) -> None:
        """Does it, as one of the job's processes."""
        import submitit

        from protobench.runtime import distributed

        if submitit.JobEnvironment().num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(
                set_cuda_visible_devices=False, overwrite=True
            )
        try:
            if self.task:
                work.evaluate(self.job, self.task, self.context)
            else:
                work.train(self.job, self.context)
        except Terminated:  # saved
            if not distributed.is_main():
                # The main process has asked Slurm to requeue the job, or waits for it; a failure
                # of this one now would end both.
                time.sleep(REQUEUE_SECONDS)
                sys.exit(0)
            time.sleep(GRACE_SECONDS)  # Slurm ends a preempted job, and requeues it
            raise
        distributed.shutdown()

    def checkpoint(self, *args: Any) -> Any:
        """What submitit queues in place of an interrupted job: the same again, which finds what is
        done."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


@dataclass(frozen=True)
class Publication:
    """The last job: writes the table from the records that there are."""

    exhibit: Exhibit
    context: RunContext
    strict: bool
    requested_keys: frozenset[str]

    @property
    def name(self) -> str:
        """The job's name in logs."""
        return f"table-{self.exhibit.name}"

    def __call__(self) -> int:
        """Does so, and returns the exit code that ``diff`` would have."""
        return publish.publish(
            self.exhibit,
            self.context.tier,
            self.context.results,
            strict=self.strict,
            requested_keys=self.requested_keys,
        )

    def checkpoint(self, *args: Any) -> Any:
        """See SlurmJob.checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


@dataclass(frozen=True)
class SlurmCluster:
    """The executor: submits what the jobs still need, and says so.

    On a cluster it returns at once, and ``publication`` becomes the last job; on this machine
    (``slurm_cluster="local"``) it returns when all is done, and the caller publishes."""

    settings: Slurm
    context: RunContext
    publication: Publication | Report

    @property
    def waits(self) -> bool:
        """See Executor.waits."""
        return self.settings.slurm_cluster == "local"

    def run(self, jobs: list[Job]) -> list[str]:
        """See Executor.run. UserError without submitit or Slurm, and where sbatch refuses a job."""
        _check(self.settings, jobs)
        self._executor  # noqa: B018 (refused before anything is submitted)
        submitted: list[Any] = []
        failed: list[str] = []
        settings = self.settings
        for job in jobs:
            encoder: list[Any] = []
            if job.trains or (job.given and self.context.rehearses):
                training = SlurmJob(job, None, self.context)
                gpus, nodes = settings.slurm_gpus, settings.slurm_nodes
                encoder.append(self._submit_once(training, [], gpus, nodes, failed))
            submitted += encoder
            submitted += [
                self._submit_once(
                    SlurmJob(job, task, self.context),
                    encoder,
                    settings.slurm_score_gpus,
                    1,
                    failed,
                )
                for task in job.tasks
                if task.state == "to run"
            ]
        if not self.waits:
            self._submit(self.publication, submitted, 0, 1, failed, any_end=True)
            print(
                f"logs and jobs.json: {self._folder}; the last job writes the result. The same"
                " command again submits what has failed"
            )
        return failed

    @property
    def _folder(self) -> Path:
        return (self.context.runs / self.context.tier / "slurm").absolute()

    @cached_property
    def _executor(self) -> Any:
        return _executor(self._folder, self.settings)

    @cached_property
    def _ledger(self) -> dict[str, str]:
        """entry -> number of the job that was submitted for it last."""
        try:
            content: dict[str, str] = json.loads((self._folder / "jobs.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return content

    def _submit_once(
        self, unit: SlurmJob, after: Sequence[Any], gpus: int, nodes: int, failed: list[str]
    ) -> Any:
        """Submits a job unless it is under way; returns submitit's."""
        import submitit

        if unit.entry in self._ledger and not self.waits:
            before: Any = submitit.SlurmJob(self._folder, self._ledger[unit.entry])
            if _under_way(before):
                print(f"  {unit.name}: on its way, job {before.job_id}")
                return before
        job = self._submit(unit, after, gpus, nodes, failed)
        self._ledger[unit.entry] = job.job_id
        content = json.dumps(self._ledger, indent=1) + "\n"
        files.write_text(self._folder / "jobs.json", content)  # each time: a kill makes no doubles
        return job

    def _submit(
        self,
        unit: SlurmJob | Publication | Report,
        after: Sequence[Any],
        gpus: int,
        nodes: int,
        failed: list[str],
        *,
        any_end: bool = False,
    ) -> Any:
        """Submits a job; on this machine also waits for it, and adds to ``failed``."""
        numbers = [job.job_id for job in after]
        self._executor.update_parameters(
            **_parameters(self.settings, unit.name, gpus, nodes, numbers, any_end)
        )
        try:
            job = self._executor.submit(unit)
        except Exception as failure:  # what sbatch says
            raise UserError(
                f"{unit.name} cannot be submitted: {failure}",
                hint="--slurm-partition, --slurm-account and --slurm-qos as this cluster has them",
            ) from failure
        waiting = f", after {', '.join(numbers)}" if numbers else ""
        print(f"  {unit.name}: job {job.job_id}{waiting}", flush=True)
        if self.waits and (error := job.exception()):
            last_line = str(error).strip().splitlines()[-1]
            failed.append(f"{unit.name}: {last_line}\n  log: {job.paths.stderr}")
        return job


def _under_way(job: Any) -> bool:
    """Whether Slurm still has the job. It may keep no account of those that have ended."""
    if job.done(force_check=True):
        return False
    if job.state != "UNKNOWN":
        return True
    return bool(
        subprocess.run(
            ["squeue", "--noheader", "--jobs", job.job_id], capture_output=True
        ).stdout.strip()
    )


def _check(slurm: Slurm, jobs: list[Job]) -> None:
    if (
        min(
            slurm.slurm_gpus,
            slurm.slurm_nodes,
            slurm.slurm_score_gpus,
            slurm.slurm_cpus,
            slurm.slurm_memory,
        )
        < 1
        or not 0 < slurm.slurm_hours <= 8760
    ):
        raise UserError(
            "--slurm-gpus, --slurm-nodes, --slurm-score-gpus, --slurm-cpus and --slurm-memory are"
            " at least 1, --slurm-hours is positive and at most a year"
        )
    if slurm.slurm_cluster == "local" and slurm.slurm_nodes > 1:
        raise UserError("--slurm-cluster local is this one machine", hint="leave out --slurm-nodes")
    for job in jobs:
        if job.trains and job.recipe and job.recipe.train.epochs:
            common.check_share(job.recipe, slurm.slurm_gpus * slurm.slurm_nodes)


def _executor(folder: Path, slurm: Slurm) -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError(
            "--slurm needs submitit",
            hint="pip install submitit, or this project with the extra slurm",
        ) from None
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        return submitit.AutoExecutor(
            folder, cluster=slurm.slurm_cluster, slurm_max_num_timeout=1000
        )
    except RuntimeError as failure:
        raise UserError(
            f"no Slurm on this machine: {failure}",
            hint="run this where sbatch and srun are, or try it out with --slurm-cluster local",
        ) from failure


def _parameters(
    slurm: Slurm, name: str, gpus: int, nodes: int, after: list[str], any_end: bool
) -> dict[str, Any]:
    """The parameters of one job, as AutoExecutor takes them."""
    dependency = (
        {"dependency": f"{'afterany' if any_end else 'afterok'}:{':'.join(after)}"} if after else {}
    )
    dependency |= {"kill-on-invalid-dep": "yes"} if after and not any_end else {}
    gpus_or_one = max(gpus, 1)
    wanted = {
        "name": name[:60],
        "nodes": nodes,
        "tasks_per_node": gpus_or_one,
        "gpus_per_node": gpus,
        "cpus_per_task": slurm.slurm_cpus,
        "mem_gb": slurm.slurm_memory * gpus_or_one,
        "timeout_min": (
            max(round(60 * slurm.slurm_hours), 1) if slurm.slurm_cluster == "slurm" else 525_600
        ),
        "slurm_partition": slurm.slurm_partition,
        "slurm_account": slurm.slurm_account,
        "slurm_qos": slurm.slurm_qos,
        "slurm_signal_delay_s": WARNING_SECONDS,
        "slurm_srun_args": [
            "--kill-on-bad-exit=1"
        ],  # else the others would wait for the one that has failed
        "slurm_additional_parameters": dependency | {"requeue": True},
    }
    return {name: value for name, value in wanted.items() if value is not None}
