"""What a table still needs as jobs of a Slurm cluster: one per encoder and per score, and one that
writes the table.

By submitit. Scores wait for their encoder (Slurm's dependencies), the table for all. A job that is
preempted, or whose time is over, is requeued and goes on from its last checkpoint: Slurm sends
SIGUSR2 some time before, the training saves at the end of its step and hands the signal on to
submitit. ``jobs.json`` in the folder of the jobs' logs remembers what was submitted, so that the
same command given again submits only what neither exists nor is on its way."""

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pretrain import recipes
from protobench.runtime import files
from protobench.runtime.errors import Terminated, UserError
from tables.engine import publish, work
from tables.engine.plan import EvalTask, Job
from tables.engine.schema import Figure, Table
from tables.engine.work import RunContext

GRACE_SECONDS, REQUEUE_SECONDS = 3600.0, 60.0
"""How long a job that has saved waits for the scheduler to end it; its other processes, for the
first to have it requeued."""
WARNING_SECONDS = 180
"""Before its time is over a job is told to stop: a step, and a checkpoint of some hundred MB."""


@dataclass(frozen=True)
class Slurm:
    """Jobs instead of processes of this machine."""

    slurm: bool = False
    """submit what is missing as jobs, one per encoder and per score (needs the extra slurm), and
    return"""
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
    """What a job does: an encoder's pretraining, or one of its scores. Pickled by submitit, which
    calls it in each process."""

    job: Job
    score: EvalTask | None
    where: RunContext

    @property
    def name(self) -> str:
        """For logs and the list of jobs; two units have two names."""
        encoder = f"{self.job.row.name}-seed{self.job.seed}-{self.job.identity[:8]}"
        return (
            f"{encoder}-{self.score.evaluation}-{self.score.dataset}-{self.score.key[:8]}"
            if self.score
            else encoder
        )

    @property
    def entry(self) -> str:
        """In the list of jobs: a score may be wanted in several folders of results."""
        return f"{self.name} in {self.where.results.absolute()}" if self.score else self.name

    def __call__(self) -> None:
        """Does it, as one of the job's processes."""
        import submitit

        from protobench.runtime import distributed

        if submitit.JobEnvironment().num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(
                set_cuda_visible_devices=False, overwrite=True
            )
        try:
            if self.score:
                work.score(self.job, self.score, self.where)
            else:
                work.train(self.job, self.where)
        except Terminated:  # saved
            if not distributed.is_main():  # the first process has asked Slurm to requeue the job, or waits; a failure now would end both
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

    table: Table | Figure
    where: RunContext
    strict: bool
    asked: frozenset[str]

    @property
    def name(self) -> str:
        """For logs."""
        return f"table-{self.table.name}"

    def __call__(self) -> int:
        """Does so, and returns the exit code that ``diff`` would have."""
        return publish.publish(
            self.table,
            self.where.tier,
            self.where.results,
            strict=self.strict,
            asked=set(self.asked),
        )

    def checkpoint(self, *args: Any) -> Any:
        """As Unit's."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def submit(jobs: list[Job], slurm: Slurm, where: RunContext, publication: Publication) -> list[str]:
    """Submits what the jobs still need, and says so. On a cluster it returns at once, on this
    machine when all is done: then with what has failed, and the table is the caller's to write.
    UserError without submitit or Slurm, and where sbatch refuses a job."""
    _check(slurm, jobs)
    local = slurm.slurm_cluster == "local"
    folder = (where.runs / where.tier / "slurm").absolute()
    executor = _executor(folder, slurm)

    import submitit

    ledger_path = folder / "jobs.json"
    ledger: dict[str, str] = {}
    with contextlib.suppress(FileNotFoundError, ValueError):
        ledger = json.loads(ledger_path.read_text())
    pending: list[Any] = []
    failed: list[str] = []

    def enqueue(
        unit: SlurmJob | Publication,
        after: list[Any],
        gpus: int,
        nodes: int = 1,
        *,
        any_end: bool = False,
    ) -> Any:
        executor.update_parameters(
            **_parameters(slurm, unit.name, gpus, nodes, [job.job_id for job in after], any_end)
        )
        try:
            job = executor.submit(unit)
        except Exception as failure:  # what sbatch says
            raise UserError(
                f"{unit.name} cannot be submitted: {failure}",
                hint="--slurm-partition, --slurm-account and --slurm-qos as this cluster has them",
            ) from failure
        told = f", after {', '.join(before.job_id for before in after)}" if after else ""
        print(f"  {unit.name}: job {job.job_id}{told}", flush=True)
        if local and (mistake := job.exception()):  # waits for it
            failed.append(
                f"{unit.name}: {str(mistake).strip().splitlines()[-1]}\n  log: {job.paths.stderr}"
            )
        return job

    def once(unit: SlurmJob, after: list[Any], gpus: int, nodes: int = 1) -> Any:
        if unit.entry in ledger and not local:
            before: Any = submitit.SlurmJob(folder, ledger[unit.entry])
            if _under_way(before):
                print(f"  {unit.name}: on its way, job {before.job_id}")
                return before
        job = enqueue(unit, after, gpus, nodes)
        ledger[unit.entry] = job.job_id
        files.write_text(
            ledger_path, json.dumps(ledger, indent=1) + "\n"
        )  # after each: a kill must not make doubles
        return job

    for job in jobs:
        after = (
            [once(SlurmJob(job, None, where), [], slurm.slurm_gpus, slurm.slurm_nodes)]
            if job.trains
            else []
        )
        pending += after + [
            once(SlurmJob(job, score, where), after, slurm.slurm_score_gpus)
            for score in job.scores
            if score.state == "to run"
        ]
    if not local:
        enqueue(publication, pending, 0, any_end=True)
        print(
            f"logs and jobs.json: {folder}; the last job writes the table. The same command again"
            " submits what has failed"
        )
    return failed


def _under_way(job: Any) -> bool:
    """Whether Slurm still has the job; it may keep no account of those that have ended."""
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
        if job.trains and job.recipe.train.epochs:
            recipes.check_share(job.recipe, slurm.slurm_gpus * slurm.slurm_nodes)


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
    """Of one job, as AutoExecutor takes them."""
    dependency = (
        {"dependency": f"{'afterany' if any_end else 'afterok'}:{':'.join(after)}"} if after else {}
    )
    dependency |= {"kill-on-invalid-dep": "yes"} if after and not any_end else {}
    gpus_or_one = max(gpus, 1)
    asked = {
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
    return {name: value for name, value in asked.items() if value is not None}
