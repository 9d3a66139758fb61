"""What a table still needs as jobs of a Slurm cluster: one per encoder and per score, and one that writes the table.

By submitit. Scores wait for their encoder (Slurm's dependencies), the table for all. A job that is preempted, or whose time is
over, is requeued and goes on from its last checkpoint: Slurm sends SIGUSR2 some time before, the training saves at the end of its
step and hands the signal on to submitit. ``jobs.json`` in the folder of the jobs' logs remembers what was submitted, so that the
same command given again submits only what neither exists nor is on its way.
"""

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from protobench import cli, files
from protobench.errors import UserError
from tables import publish, work
from tables.plan import Job, Score
from tables.schema import Figure, Table
from tables.work import Where

GRACE_SECONDS = 300.0
"""How long a job that has saved waits for the scheduler to end it."""
WARNING_SECONDS = 180
"""Before its time is over a job is told to stop: a step, and a checkpoint of some hundred MB."""


@dataclass(frozen=True)
class Slurm:
    """Jobs instead of processes of this machine."""

    slurm: bool = False
    """submit what is missing as jobs, one per encoder and per score (needs the extra slurm), and return"""
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
    """local: the same as processes of this machine, one job after the other: to try it out, or to use all of its GPUs"""


@dataclass(frozen=True)
class Unit:
    """What a job does: an encoder's pretraining, or one of its scores. Pickled by submitit, which calls it in each process."""

    job: Job
    score: Score | None
    where: Where

    @property
    def name(self) -> str:
        """For logs and the list of jobs."""
        return f"{self.job.checkpoint.parent.name}{f'-{self.score.evaluation}-{self.score.dataset}' if self.score else ''}"

    def __call__(self) -> None:
        """Does it, as one of the job's processes."""
        import submitit

        from protobench import ranks

        if submitit.JobEnvironment().num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        try:
            if self.score:
                work.score(self.job, self.score, self.where)
            else:
                work.train(self.job, self.where)
        except cli.Terminated:
            if ranks.first():  # saved; Slurm ends a preempted job, and requeues it
                time.sleep(GRACE_SECONDS)
            raise
        ranks.leave()

    def checkpoint(self, *args: Any) -> Any:
        """What submitit queues in place of an interrupted job: the same again, which finds what is done."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


@dataclass(frozen=True)
class Publication:
    """The last job: writes the table from the records that there are."""

    table: Table | Figure
    where: Where
    strict: bool
    asked: frozenset[str]

    name = "table"

    def __call__(self) -> int:
        """Does so, and returns the exit code that ``diff`` would have."""
        return publish.publish(self.table, self.where.tier, self.where.results, strict=self.strict, asked=set(self.asked))

    def checkpoint(self, *args: Any) -> Any:
        """As Unit's."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def submit(jobs: list[Job], slurm: Slurm, where: Where, publication: Publication) -> str:
    """Submits what the jobs still need, and says so. UserError without submitit, or without Slurm."""
    if min(slurm.slurm_gpus, slurm.slurm_nodes, slurm.slurm_score_gpus, slurm.slurm_cpus, slurm.slurm_memory) < 1 \
            or not slurm.slurm_hours > 0:
        raise UserError("--slurm-gpus, --slurm-nodes, --slurm-score-gpus, --slurm-cpus and --slurm-memory are at least 1, "
                        "--slurm-hours is positive")
    folder = (where.runs / where.tier / "slurm").absolute()
    executor = _executor(folder, slurm)

    import submitit

    ledger_path = folder / "jobs.json"
    ledger: dict[str, str] = {}
    with contextlib.suppress(FileNotFoundError, ValueError):
        ledger = json.loads(ledger_path.read_text())
    lines, pending = [], []

    def enqueue(unit: Unit | Publication, after: list[Any], gpus: int, nodes: int = 1, *, any_end: bool = False) -> Any:
        if unit.name in ledger:
            before: Any = (submitit.SlurmJob if slurm.slurm_cluster == "slurm" else submitit.LocalJob)(folder, ledger[unit.name])
            if not before.done():
                lines.append(f"  {unit.name}: on its way, job {before.job_id}")
                return before
        if slurm.slurm_cluster == "local":  # which knows no dependencies
            for job in after:
                job.wait()
        executor.update_parameters(**_parameters(slurm, unit.name, gpus, nodes, [job.job_id for job in after], any_end))
        job = executor.submit(unit)
        ledger[unit.name] = job.job_id
        files.write_text(ledger_path, json.dumps(ledger, indent=1) + "\n")  # after each: a kill must not make doubles
        told = f", after {', '.join(before.job_id for before in after)}" if after else ""
        lines.append(f"  {unit.name}: job {job.job_id}{told}")
        return job

    for job in jobs:
        after = [enqueue(Unit(job, None, where), [], slurm.slurm_gpus, slurm.slurm_nodes)] if job.trains else []
        pending += after + [enqueue(Unit(job, score, where), after, slurm.slurm_score_gpus)
                            for score in job.scores if score.state == "to run"]
    last = enqueue(publication, pending, 0, any_end=True)
    if slurm.slurm_cluster == "local":
        last.wait()
    return "\n".join([*lines, f"logs: {folder}; the last job writes the table; the same command submits again what has failed"])


def _executor(folder: Path, slurm: Slurm) -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError("--slurm needs submitit", hint="pip install submitit, or this project with the extra slurm") from None
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        return submitit.AutoExecutor(folder, cluster=slurm.slurm_cluster, slurm_max_num_timeout=1000)
    except RuntimeError as failure:
        raise UserError(f"no Slurm on this machine: {failure}",
                        hint="run this where sbatch and srun are, or try it out with --slurm-cluster local") from failure


def _parameters(slurm: Slurm, name: str, gpus: int, nodes: int, after: list[str], any_end: bool) -> dict[str, Any]:
    """Of one job, as AutoExecutor takes them."""
    dependency = {"dependency": f"{'afterany' if any_end else 'afterok'}:{':'.join(after)}"} if after else {}
    dependency |= {"kill-on-invalid-dep": "yes"} if after and not any_end else {}
    gpus_or_one = max(gpus, 1)
    asked = {"name": name[:60], "nodes": nodes, "tasks_per_node": gpus_or_one, "gpus_per_node": gpus,
            "cpus_per_task": slurm.slurm_cpus, "mem_gb": slurm.slurm_memory * gpus_or_one,
            "timeout_min": max(round(60 * slurm.slurm_hours), 1), "slurm_partition": slurm.slurm_partition,
            "slurm_account": slurm.slurm_account, "slurm_qos": slurm.slurm_qos, "slurm_signal_delay_s": WARNING_SECONDS,
            "slurm_additional_parameters": dependency | {"requeue": True}}
    return {name: value for name, value in asked.items() if value is not None}
