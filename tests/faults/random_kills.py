"""Rounds of a job that loses a process at random: a driver, an actor, an agent, a raylet, a GCS server.

    python -m tests.faults.random_kills --rounds 40 --seed 7

A round draws a place (Ray embedded, or a cluster that stands on this machine), a kind of process, a signal and a
moment. Of what runs then, one process of the kind gets the signal: of the round's own, no other. The rules:

1. The command ends within `END_S` of the signal, whether it did its work or not.
2. Its exit code is one of `CODES`, and the last line of its log is the summary, with that code. Two have none: a
   driver that got SIGKILL cannot, and a command that a signal ended while it was imported has its one line.
3. Nothing of the job is left `GONE_S` later; a cluster that stands has its own processes still, and no actor.
4. What is in the dataset then has the bytes of an undisturbed run.
5. The same command again ends with 0, and the dataset is that of an undisturbed run, byte by byte.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tatok_pipe.errors import EXIT_DONE, EXIT_FAILED_SHARDS, EXIT_INTERRUPTED
from tatok_pipe.runs.job import SUMMARY
from tatok_pipe.runs.stop_signal import INTERRUPTED
from tests.entries import error_lines
from tests.faults import job
from tests.faults.corpus import write_corpus
from tests.faults.injector import Fault, Injector
from tests.faults.processes import Family
from tests.faults.standing import StandingCluster, is_raylet
from tests.pictures import small_tokenizer

END_S = 90.0
GONE_S = 30.0
NUM_SHARDS, NUM_IMAGES = 12, 3
_SHARD_S = 0.4  # that a shard takes at least: a kill is to meet a run at work
_LOOK_EVERY_S = 0.05
EMBEDDED, CLUSTER = "embedded", "cluster"
_KINDS: dict[str, Callable[[str], bool]] = {
    "actor": lambda line: line.startswith("ray::ShardActor"),
    "agent": lambda line: line.startswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent")) or "log_monitor.py" in line,
    "raylet": is_raylet,
    "gcs": lambda line: Path(line.split()[0]).name == "gcs_server",
}  # fmt: skip
DRIVER = "driver"
# What the command may leave with, by who got the signal. An actor is replaced. Embedded, Ray ends with its raylet and
# its GCS server, and a raylet with its agents; a cluster goes on without a node, and ends with its head. Who comes when
# all shards are done changes nothing.
CODES: dict[str, set[int]] = {
    DRIVER: {EXIT_DONE, EXIT_INTERRUPTED},
    "actor": {EXIT_DONE},
    "agent": {EXIT_DONE, EXIT_FAILED_SHARDS},
    "raylet": {EXIT_DONE, EXIT_FAILED_SHARDS},
    "gcs": {EXIT_DONE, EXIT_FAILED_SHARDS},
}


@dataclass(frozen=True)
class Plan:
    """What a round draws."""

    place: str
    kind: str
    number: signal.Signals
    after_shards: int | None  # committed ones; None: by the clock
    wait: float  # seconds, since so many shards were there; or by the clock a share of an undisturbed run's time
    pick: float  # which process of the kind, where there are several: a share of their number

    @property
    def when(self) -> str:
        if self.after_shards is None:
            return f"at {100 * self.wait:.0f} % of a run"
        return f"{self.wait:.1f} s after shard {self.after_shards}"


def draw(dice: random.Random) -> Plan:
    kind = dice.choices([DRIVER, *_KINDS], weights=[3, 3, 2, 3, 1])[0]
    place = dice.choice([EMBEDDED, CLUSTER])
    number = dice.choices([signal.SIGKILL, signal.SIGTERM], weights=[3, 1])[0]
    by_clock, wait = dice.random() < 0.4, dice.random()
    shard, pick = dice.randrange(NUM_SHARDS - 2), dice.random()
    if by_clock:
        return Plan(place, kind, number, None, 0.05 + 0.75 * wait, pick)
    return Plan(place, kind, number, shard, wait * _SHARD_S, pick)


@dataclass
class Round:
    """What became of a round."""

    plan: Plan
    victim: str = ""  # the process that got the signal; empty where none was there any more
    num_done: int = 0  # shards that were in the dataset then
    code: int = 0
    end_s: float = 0.0  # from the signal to the end of the command
    gone_s: float = 0.0  # and from there to the end of its last process
    problems: list[str] = field(default_factory=list)

    @property
    def row(self) -> str:
        plan = self.plan
        told = "; ".join(self.problems) or "ok"
        if not self.victim:
            told = f"came too late: {told}"
        return (
            f"{plan.place:8} {plan.kind:6} {plan.number.name:7} {plan.when:22} {_name(self.victim):22} "
            f"{self.num_done:2d}/{NUM_SHARDS} done, exit {self.code:3d} after {self.end_s:4.1f} s, "
            f"gone after {self.gone_s:4.1f} s: {told}"
        )


def _name(command_line: str) -> str:
    """Ray's title of a process, or its program."""
    words = (Path(word).name for word in command_line.split())
    return next((word for word in words if not word.startswith(("python", "-"))), "")


class Site:
    """What all rounds share: inputs, what has to come of them, and a cluster that stands, where one is needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cluster: StandingCluster | None = None
        self._injector = Injector(folder, [Fault("encode", f"sleep:{_SHARD_S}", times=None)])
        checkpoint = small_tokenizer(folder / "tokenizer")
        corpus = write_corpus(folder / "shards", num_shards=NUM_SHARDS, num_images=NUM_IMAGES)
        self._arguments = [
            f"input.shards={corpus.folder}",
            f"tokenizer.checkpoint={checkpoint}",
            "actors.cpus=1",
        ]
        undisturbed = str(folder / "undisturbed")
        with self._start(EMBEDDED, undisturbed) as running:
            done = running.wait()
        assert done.code == 0, done.stderr
        self._run_s = done.seconds
        self._expected = job.digests(undisturbed)
        assert len(job.committed(undisturbed)) == NUM_SHARDS

    def close(self) -> None:
        if self._cluster:
            self._cluster.close()
        self._injector.check()

    def play(self, plan: Plan) -> Round:
        played = Round(plan)
        output = str(Path(tempfile.mkdtemp(dir=self._folder, prefix="round-")) / "out")
        try:
            self._play(played, output)
        except AssertionError as error:
            played.problems.append(str(error))
        return played

    def _play(self, played: Round, output: str) -> None:
        plan = played.plan
        with self._start(plan.place, output) as running:
            self._strike(running, output, played)
            struck_s = time.monotonic()
            done = running.wait(END_S)
            played.code, played.end_s = done.code, time.monotonic() - struck_s
            played.problems += judge(played, done.stderr)
            left = self._left_over(running, plan.place)
            played.gone_s = time.monotonic() - struck_s - played.end_s
            if left:
                played.problems.append(f"outlived the command by {GONE_S:g} s: {left}")
        if Path(output, "data").exists() and not job.digests(output).items() <= self._expected.items():
            played.problems.append("other bytes than an undisturbed run's")
        with self._start(plan.place, output) as again:
            done = again.wait()
        if done.code or "Traceback" in done.stderr:
            played.problems.append(f"again, exit code {done.code}: {done.stderr}")
        elif job.digests(output) != self._expected:
            played.problems.append("again, not the dataset of an undisturbed run")

    def _start(self, place: str, output: str) -> job.Job:
        env = self._injector.environment()
        options = ["encode.batch_size=4", "progress.every_s=2", f"output.url={output}"]
        if place == EMBEDDED:
            return job.Job([*self._arguments, *options, "actors.max=1"], env=env, folder=self._folder)
        env |= self._standing_cluster().client
        return job.Job([*self._arguments, *options, "actors.max=2"], env=env, folder=self._folder)

    def _standing_cluster(self) -> StandingCluster:
        """A whole one: another where the last round broke it."""
        if self._cluster and not self._cluster.is_whole:
            self._cluster.close()
            self._cluster = None
        if not self._cluster:
            env = self._injector.environment()
            try:
                self._cluster = StandingCluster(env)
            except (
                AssertionError
            ):  # Ray gives a node half a minute to come up, and a busy machine may take longer
                self._cluster = StandingCluster(env)
        return self._cluster

    def _strike(self, running: job.Job, output: str, played: Round) -> None:
        """At the planned moment send the signal to a process of the kind, as soon as there is one."""
        plan = played.plan
        family: Family | StandingCluster = running.family
        if plan.place == CLUSTER and plan.kind != DRIVER and self._cluster:
            family = self._cluster
        is_wanted = _KINDS.get(plan.kind, lambda line: True)
        wait_for_moment(running, output, plan, run_s=self._run_s)
        while running.process.poll() is None and not played.victim:
            family.remember()
            lines = family.alive()
            found = [pid for pid in sorted(lines) if is_wanted(lines[pid])]
            if plan.kind == DRIVER:
                found = [running.process.pid]
            victim = found[int(plan.pick * len(found))] if found else 0
            if victim and family.send(victim, plan.number):
                played.victim = lines[victim]
            time.sleep(_LOOK_EVERY_S)
        played.num_done = count_done(output)

    def _left_over(self, running: job.Job, place: str) -> list[str]:
        left = running.left_over(within_s=GONE_S)
        until = time.monotonic() + GONE_S
        while place == CLUSTER and self._cluster and not left:
            self._cluster.remember()
            left = [line for line in self._cluster.alive().values() if line.startswith("ray::ShardActor")]
            if not left or time.monotonic() > until:
                break
            left = []
            time.sleep(_LOOK_EVERY_S)
        return left


def wait_for_moment(running: job.Job, output: str, plan: Plan, *, run_s: float) -> None:
    """Wait until the planned moment, or the end of the command; `run_s` is what an undisturbed one takes."""
    at = time.monotonic() + plan.wait * run_s if plan.after_shards is None else None
    while running.process.poll() is None and (at is None or time.monotonic() < at):
        if at is None and count_done(output) >= (plan.after_shards or 0):
            at = time.monotonic() + plan.wait
        time.sleep(_LOOK_EVERY_S)


def count_done(output: str) -> int:
    return len(job.committed(output)) if Path(output, "data").exists() else 0


def judge(played: Round, stderr: str) -> list[str]:
    """What of the first two rules does not hold."""
    plan, code = played.plan, played.code
    problems = []
    if plan.kind == DRIVER and plan.number == signal.SIGKILL and played.victim:
        return [] if code == -signal.SIGKILL else [f"exit code {code} of a driver that was killed"]
    allowed = CODES[plan.kind] if played.victim else {EXIT_DONE}
    if code not in allowed:
        problems.append(f"exit code {code}, expected one of {sorted(allowed)}: {stderr}")
    if "Traceback" in stderr:
        problems.append(f"a traceback: {stderr}")
    told = [line for line in stderr.splitlines() if SUMMARY in line]
    if not told:
        if code != EXIT_INTERRUPTED or error_lines(stderr) != [INTERRUPTED]:
            problems.append(f"no summary: {stderr}")
        return problems
    summary = json.loads(told[-1].partition(SUMMARY)[2])
    if len(told) != 1 or summary["exit_code"] != code:
        problems.append(f"exit code {code} is not what the summary tells: {told}")
    return problems


def play_rounds(
    count: int, *, seed: int, folder: Path, only: Sequence[int] = ()
) -> Iterator[tuple[int, Round]]:
    """Rounds with their numbers from 1 on, as they come; `only` these, where given."""
    dice = random.Random(seed)
    plans = [draw(dice) for _ in range(count)]
    site = Site(folder)
    try:
        for number, plan in enumerate(plans, start=1):
            if not only or number in only:
                yield number, site.play(plan)
    finally:
        site.close()


def summarise(rounds: list[Round]) -> str:
    """A table of the rounds by who got which signal."""
    lines = [f"{'place':8} {'kind':6} {'signal':7} rounds  exit codes                longest end   failed"]
    groups: dict[tuple[str, str, str], list[Round]] = {}
    for played in rounds:
        plan = played.plan
        groups.setdefault((plan.place, plan.kind, plan.number.name), []).append(played)
    for (place, kind, number), group in sorted(groups.items()):
        codes = ", ".join(
            f"{code} × {count}" for code, count in sorted(Counter(each.code for each in group).items())
        )
        longest = max(each.end_s for each in group)
        failed = sum(bool(each.problems) for each in group)
        lines.append(
            f"{place:8} {kind:6} {number:7} {len(group):6d}  {codes:25} {longest:9.1f} s {failed:8d}"
        )
    late = sum(not played.victim for played in rounds)
    lines.append(
        f"{len(rounds)} rounds, {late} of which came too late; {sum(bool(r.problems) for r in rounds)} failed"
    )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.random_kills")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 16))
    parser.add_argument("--only", type=int, nargs="*", default=(), help="numbers of the rounds to play")
    options = parser.parse_args(argv)
    print(f"--rounds {options.rounds} --seed {options.seed}", flush=True)
    rounds = []
    with tempfile.TemporaryDirectory(prefix="tatok-kills-") as folder:
        for number, played in play_rounds(
            options.rounds, seed=options.seed, folder=Path(folder), only=options.only
        ):
            rounds.append(played)
            print(f"{number:3d} {played.row}", flush=True)
    print(summarise(rounds))
    return int(any(played.problems for played in rounds))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
