"""Schedulers of a search replayed on complete learning curves: `python -m benchmarks.search`."""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from scipy import stats

from benchmarks.measure import EXIT_CODES, add_epochs, positive, print_table
from brainseg.cli import FINISHED, build_parser, run_command
from brainseg.config import Experiment
from brainseg.errors import ConfigError
from study.spec.halving import IN_ROUNDS, ROUND_FACTOR, UNFROZEN_EPOCHS
from study.spec.search_space import Range
from study.spec.study_spec import SCHEDULERS, SCORE, SearchSpec, StudySpec
from study.storage.leaderboard import read_candidates
from study.storage.study_folder import read_spec
from study.storage.trial_folder import candidate_folder

OPTIMUM = 0.72
"""What the best SYNTHETIC settings reach in the end, without noise."""

_WEIGHTS = {"decay": 0.06, "augment": 0.04, "batch": 0.03, "loss": 0.03, "clip": 0.03}
"""Further SYNTHETIC settings -> what the Dice loses at their worst value."""

_BEST = 5
_DESCRIPTION = """\
Compare the schedulers of a search, and variants of them, on complete learning curves. Nothing is
trained and no Ray is started: each scheduler sees the val Dice of every epoch of every candidate,
in the order of drawing with so many candidates at once, and decides which candidates continue.

The curves are those of --study, whose candidates all ran in full (`--scheduler none`), or else
SYNTHETIC ones, a set per seed: the rise depends on the learning rate, fast candidates are passed
by slower ones, the first unfrozen epoch loses, every epoch has noise, and candidates after the
tenth lie near the best so far, as those of a sampler that learns do. What a scheduler would have
changed in what is drawn is not replayed.

Printed per scheduler: the share of all epochs that is trained; the regret, the best score of any
candidate in full less that of the chosen one; how often the best one is chosen; how many of the
best five of all run in full; and how long the search takes, as a share of its time in full."""
_EXAMPLES = """\
  python -m benchmarks.search
  python -m benchmarks.search --seeds 100 --candidates 40 --epochs 5 15
  python -m benchmarks.search --study results/full --at-once 1 2
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: _measure(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    epilog = f"examples:\n{_EXAMPLES}{EXIT_CODES}"
    parser = build_parser("benchmarks.search", _DESCRIPTION, epilog)
    parser.add_argument(
        "--study",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a study whose search ran in full; may be given again (default: SYNTHETIC curves)",
    )
    parser.add_argument(
        "--seeds", type=positive, default=20, metavar="N", help="sets of curves (default: 20)"
    )
    parser.add_argument(
        "--candidates", type=positive, default=20, metavar="N", help="in each (default: 20)"
    )
    add_epochs(parser, 1, 11)
    parser.add_argument(
        "--at-once",
        type=positive,
        nargs="+",
        default=(1, 2, 8),
        metavar="N",
        help="candidates at once, a table for each (default: 1 2 8)",
    )
    return parser


@dataclass(frozen=True)
class Curves:
    """The learning curves of a search.

    Attributes:
        dice: Val Dice, float of shape (candidates, epochs), candidates in the order of drawing.
        frozen: Epochs with a frozen encoder, at the start of each.
        seed: Of the search; draws the brackets of `hyperband`.
    """

    dice: np.ndarray
    frozen: int
    seed: int

    @property
    def search(self) -> Search:
        """What a scheduler knows of it."""
        count, longest = self.dice.shape
        return Search(count, self.frozen, longest, self.seed)

    @property
    def best(self) -> np.ndarray:
        """The highest val Dice so far, which candidates are compared by; same shape."""
        return np.maximum.accumulate(self.dice, axis=1)

    @property
    def final(self) -> np.ndarray:
        """What each candidate scores in full, float of shape (candidates,)."""
        return self.best[:, -1]


class Policy(Protocol):
    """Says after each epoch whether a candidate goes on."""

    def goes_on(self, candidate: int, epoch: int, dice: np.ndarray) -> bool:
        """Decide by the val Dice of its epochs so far, of shape (epoch,)."""


Rule = Callable[[np.ndarray, int, int], float]
"""What a rung compares: (val Dice so far, frozen epochs, epochs in full) -> a value."""


def best_so_far(dice: np.ndarray, frozen: int, longest: int) -> float:
    """Return the highest val Dice, as the project does."""
    return float(dice.max())


def last_value(dice: np.ndarray, frozen: int, longest: int) -> float:
    """Return the last val Dice."""
    return float(dice[-1])


def median_of_three(dice: np.ndarray, frozen: int, longest: int) -> float:
    """Return the median of the last three val Dice."""
    return float(np.median(dice[-3:]))


def last_slope(dice: np.ndarray, frozen: int, longest: int) -> float:
    """Return the highest val Dice, raised at half of the last slope until the end."""
    slope = max(0.0, float(dice[-1] - dice[-2])) if len(dice) > 1 else 0.0
    return best_so_far(dice, frozen, longest) + slope * (longest - len(dice)) / 2


def power_law(dice: np.ndarray, frozen: int, longest: int) -> float:
    """Return the end of a - b / epoch, fitted to the unfrozen epochs by least squares."""
    unfrozen = np.arange(1, len(dice) - frozen + 1)
    if len(unfrozen) < 2:
        return float(dice[-1])
    slope, start = np.polyfit(1 / unfrozen, dice[frozen:], 1)
    return float(start + slope / (longest - frozen))


@dataclass
class Rungs:
    """Asynchronous successive halving that stops, as Tune does it, with any rungs.

    Attributes:
        epochs: Of the rungs, ascending.
        keep: Share of the candidates that continues at each.
        frozen: Epochs with a frozen encoder.
        longest: Epochs in full.
        rule: What is compared.
        risers: Share of the candidates, by their last gain, that continues whatever their value.
    """

    epochs: Sequence[int]
    keep: float
    frozen: int
    longest: int
    rule: Rule = best_so_far
    risers: float = 0.0
    _seen: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def goes_on(self, candidate: int, epoch: int, dice: np.ndarray) -> bool:
        """Decide as `Policy` says."""
        if epoch not in self.epochs:
            return True
        seen = self._seen.setdefault(epoch, [])
        now = self.rule(dice, self.frozen, self.longest), float(dice[-1] - dice[-2])
        shares = self.keep, self.risers
        cuts = [
            np.quantile([values[side] for values in seen], 1 - share) if seen else None
            for side, share in enumerate(shares)
        ]
        seen.append(now)
        passes = cuts[0] is None or now[0] >= cuts[0]
        rises = self.risers > 0 and cuts[1] is not None and now[1] >= cuts[1]
        return bool(passes or rises)


@dataclass(frozen=True)
class Replay:
    """What a scheduler made of a set of curves.

    Attributes:
        trained: Epochs of each candidate.
        time: Of the whole search, in epochs of one candidate.
    """

    trained: list[int]
    time: int


def run_stopping(curves: Curves, policy: Policy, at_once: int) -> Replay:
    """Replay a scheduler that stops: a slot that gets free takes the next candidate."""
    count, longest = curves.dice.shape
    trained, time = [0] * count, 0
    waiting, slots = list(range(count)), list[int]()
    while waiting or slots:
        while waiting and len(slots) < at_once:
            slots.append(waiting.pop(0))
        time += 1
        for candidate in list(slots):
            epoch = trained[candidate] = trained[candidate] + 1
            goes_on = policy.goes_on(candidate, epoch, curves.dice[candidate, :epoch])
            if epoch == longest or not goes_on:
                slots.remove(candidate)
    return Replay(trained, time)


def run_rounds(
    curves: Curves, rungs: Sequence[int], keep: float, at_once: int, rule: Rule = best_so_far
) -> Replay:
    """Replay successive halving in rounds: all candidates wait at a rung, the best go on."""
    count, longest = curves.dice.shape
    trained, time, left = [0] * count, 0, list(range(count))
    for before, rung in pairwise((0, *rungs, longest)):
        for candidate in left:
            trained[candidate] = rung
        time += math.ceil(len(left) / at_once) * (rung - before)
        values = {c: rule(curves.dice[c, :rung], curves.frozen, longest) for c in left}
        order = sorted(left, key=lambda c: (-values[c], c))
        left = sorted(order[: max(1, round(len(left) * keep))])
    return Replay(trained, time)


class Promotion:
    """Asynchronous halving that promotes (Li et al. 2020, algorithm 2).

    A candidate waits at its rung. A free slot takes the best waiting one that is among the best
    `keep` of all that were there, from the last rung down, or else begins a new candidate.
    """

    def __init__(self, curves: Curves, rungs: Sequence[int], keep: float) -> None:
        self._curves, self._keep = curves, keep
        self._steps = (*rungs, curves.search.longest)
        self._there: dict[int, list[int]] = {rung: [] for rung in self._steps}
        self._promoted: set[tuple[int, int]] = set()
        self._waiting = list(range(curves.search.candidates))

    def next_job(self) -> tuple[int, int] | None:
        """Return a candidate and the epoch that it trains to; None if none may continue."""
        for rung, following in reversed(list(pairwise(self._steps))):
            best = self._curves.best[:, rung - 1]
            order = sorted(self._there[rung], key=lambda c: (-best[c], c))
            for candidate in order[: int(len(order) * self._keep)]:
                if (candidate, rung) not in self._promoted:
                    self._promoted.add((candidate, rung))
                    return candidate, following
        return (self._waiting.pop(0), self._steps[0]) if self._waiting else None

    def run(self, at_once: int) -> Replay:
        """Replay it with so many slots."""
        trained, time = [0] * self._curves.search.candidates, 0
        slots: dict[int, int] = {}
        while True:
            while len(slots) < at_once and (job := self.next_job()) is not None:
                slots[job[0]] = job[1]
            if not slots:
                return Replay(trained, time)
            time += 1
            for candidate, until in list(slots.items()):
                trained[candidate] += 1
                if trained[candidate] == until:
                    del slots[candidate]
                    self._there[until].append(candidate)


@dataclass(frozen=True)
class Search:
    """What a scheduler knows before the first epoch."""

    candidates: int
    frozen: int
    longest: int
    seed: int


class _OwnScheduler:
    """One of the project's own schedulers, through the code that a search runs.

    Args:
        name: One of `SCHEDULERS`.
        search: What it is asked.
    """

    def __init__(self, name: str, search: Search) -> None:
        from study.tune.schedulers import build_scheduler

        self._longest = search.longest
        epochs = search.frozen, search.longest - search.frozen
        stages = {f"stages.{stage}.epochs": count for stage, count in enumerate(epochs)}
        spec = StudySpec(
            grid="one",
            variants={"configured": {}},
            experiment=Experiment().replaced({"seed": search.seed, **stages}),
            search=SearchSpec(
                candidates=search.candidates,
                scheduler=name,
                space={"augment.strength": Range(low=0, high=2)},
            ),
        )
        decisions: Any = _Decisions()
        self._scheduler = build_scheduler(spec, decisions)

    def goes_on(self, candidate: int, epoch: int, dice: np.ndarray) -> bool:
        """Decide as `Policy` says."""
        from study.tune.schedulers import CONTINUE
        from study.tune.trainable import JOB

        trial = SimpleNamespace(config={JOB: {"candidate": candidate}})
        result = {"epoch": epoch, SCORE: float(dice.max()), "epochs": self._longest}
        return bool(self._scheduler.on_trial_result(None, trial, result) == CONTINUE)


class _Decisions(dict[tuple[int, int], str]):
    """In the place of the file decisions.csv."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def get(self, candidate: int, epoch: int) -> str | None:  # type: ignore[override]
        return super().get((candidate, epoch))

    def add(self, candidate: int, epoch: int, value: float, decision: str) -> None:
        self[candidate, epoch] = decision


@dataclass(frozen=True)
class _EndsAt:
    """Ends every candidate after an epoch, as the first round of halving does."""

    last: int

    def goes_on(self, candidate: int, epoch: int, dice: np.ndarray) -> bool:
        """Decide as `Policy` says."""
        return epoch < self.last


@dataclass(frozen=True)
class Scheduler:
    """A scheduler.

    Attributes:
        begin: Builds what decides while candidates are drawn.
        replay: Replays it on curves with so many candidates at once.
    """

    begin: Callable[[Search], Policy]
    replay: Callable[[Curves, int], Replay]


def _stopping(begin: Callable[[Search], Policy]) -> Scheduler:
    return Scheduler(
        begin,
        lambda curves, at_once: run_stopping(curves, begin(curves.search), at_once),
    )


def _rungs(search: Search, later: int, step: float) -> list[int]:
    """Return rungs, each `step` times as far as the one before, or each epoch with 1."""
    found, epoch = [], float(search.frozen + UNFROZEN_EPOCHS + later)
    while round(epoch) < search.longest:
        found.append(round(epoch))
        epoch = epoch + 1 if step == 1 else epoch * step
    return found


def _asha(step: float, factor: float, later: int = 0, **options: Any) -> Scheduler:
    return _stopping(
        lambda search: Rungs(
            _rungs(search, later, step), 1 / factor, search.frozen, search.longest, **options
        )
    )


def _halving(step: float, factor: float, later: int = 0, rule: Rule | None = None) -> Scheduler:
    return Scheduler(
        lambda search: _EndsAt(search.frozen + UNFROZEN_EPOCHS + later),
        lambda curves, at_once: run_rounds(
            curves, _rungs(curves.search, later, step), 1 / factor, at_once, rule or best_so_far
        ),
    )


def _promoting(step: float, factor: float) -> Scheduler:
    return Scheduler(
        lambda search: _EndsAt(search.frozen + UNFROZEN_EPOCHS),
        lambda curves, at_once: Promotion(curves, _rungs(curves.search, 0, step), 1 / factor).run(
            at_once
        ),
    )


def _schedulers() -> dict[str, Scheduler]:
    """Return what is compared: the project's schedulers, then variants, by name."""
    found = {
        f"**{name}**": _stopping(partial(_OwnScheduler, name))
        for name in SCHEDULERS
        if name != IN_ROUNDS
    }
    found |= {f"**{IN_ROUNDS}**": _halving(ROUND_FACTOR, ROUND_FACTOR)}
    found |= {f"asha, factor {f}": _asha(f, f) for f in (2, 3)}
    found |= {f"asha, first rung {n} later": _asha(4, 4, n) for n in (1, 2)}
    found |= {"asha, 1 of 4 at rungs x 2": _asha(2, 4)}
    found |= {f"asha, 1 of {f} each epoch": _asha(1, f) for f in (2, 4, 6, 10)}
    found |= {"asha, the best alone each epoch": _asha(1, math.inf)}
    found |= {f"asha by {name}": _asha(4, 4, rule=rule) for name, rule in _RULES.items()}
    found |= {"asha, and a quarter of risers": _asha(4, 4, risers=0.25)}
    found |= {"promotion, factor 4": _promoting(4, 4)}
    found |= {"promotion, 1 of 4 at rungs x 2": _promoting(2, 4)}
    found |= {f"rounds, factor {f}": _halving(f, f) for f in (2, 4)}
    found |= {f"rounds, 1 of {f} at rungs x 2": _halving(2, f) for f in (3, 4)}
    found |= {f"rounds, 1 of {f} at rungs x 1.5": _halving(1.5, f) for f in (2, 3)}
    found |= {f"rounds, first rung {n} later, 1 of 4": _halving(2, 4, n) for n in (1, 2)}
    by = {f"rounds by {n}, 1 of 4 at rungs x 2": _halving(2, 4, 0, r) for n, r in _RULES.items()}
    return found | by


_RULES: dict[str, Rule] = {
    "the last value": last_value,
    "the median of three": median_of_three,
    "the last slope": last_slope,
    "a power law": power_law,
}


def draw_curves(search: Search, policy: Policy | None = None) -> Curves:
    """Return SYNTHETIC learning curves with the features of real ones.

    A candidate has a learning rate, as its distance from the best one in powers of ten, and five
    other settings. Low rates rise slowly; high ones rise fast, end lower and are noisier. Optuna's
    TPE draws the candidates, one at a time; the first two are the protocol, whose rate is low.

    Args:
        search: How many candidates of how many epochs; its seed draws them.
        policy: Stops candidates, so that TPE learns from what was trained; None stops no
            candidate.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=search.seed, multivariate=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(sampler=sampler, direction="maximize")
    for rate in (-1.3, -1.6):
        study.enqueue_trial({"rate": rate, **dict.fromkeys(_WEIGHTS, 0.5)})
    rows = []
    for index in range(search.candidates):
        trial = study.ask()
        point = {"rate": trial.suggest_float("rate", -1.6, 1.0)}
        point |= {name: trial.suggest_float(name, -1.0, 1.0) for name in _WEIGHTS}
        curve = _draw_curve(np.random.default_rng([search.seed, index]), point, search)
        trained = 1
        while trained < search.longest and (
            policy is None or policy.goes_on(index, trained, curve[:trained])
        ):
            trial.report(float(curve[:trained].max()), trained)
            trained += 1
        trial.report(float(curve[:trained].max()), trained)
        if trained == search.longest:
            study.tell(trial, float(curve.max()))
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        rows.append(curve)
    return Curves(np.array(rows), search.frozen, search.seed)


def _draw_curve(
    rng: np.random.Generator, point: Mapping[str, float], search: Search
) -> np.ndarray:
    rate = point["rate"]
    end = OPTIMUM - 0.12 * max(rate, 0) ** 2 + rng.normal(0, 0.01)  # the latter of its seed
    end -= sum(weight * point[name] ** 2 for name, weight in _WEIGHTS.items())
    pace = 2.2 * 10 ** (-0.6 * rate) * rng.lognormal(0, 0.25)  # epochs to 63 % of the end
    epochs = np.arange(1, search.longest + 1)
    curve = end * -np.expm1(-epochs / pace)
    if 0 < search.frozen < search.longest:
        drop = max(0, rng.normal(0.08, 0.06)) * 10 ** (0.3 * rate)
        after = epochs - search.frozen - 1
        curve = curve - np.where(after >= 0, drop * 0.4 ** np.maximum(after, 0), 0)
        curve[: search.frozen] *= 0.6  # a frozen encoder learns less
    noise = 0.025 * 10 ** (0.3 * rate) * (1.5 - epochs / search.longest)
    return np.clip(curve + rng.normal(0, 1, search.longest) * noise, 0, 1)


def read_curves(folder: Path) -> list[Curves]:
    """Return the curves of each search of a study.

    Raises:
        ConfigError: If the study has no search, or candidates were stopped or have not ended.
    """
    spec = read_spec(folder)
    if spec.search is None:
        raise ConfigError(f"--study {folder}: the study has no search")
    found = []
    for search in spec.searches:
        group = search.group
        count = len(read_candidates(folder, search))
        folders = [candidate_folder(folder, index, group) for index in range(count)]
        if cut := [one.path.name for one in folders if one.status in ("stopped", "unfinished")]:
            raise ConfigError(
                f"--study {folder}: candidate {cut[0]} was not trained in full: run the search "
                "with --scheduler none"
            )
        rows = [[row["val_dice"] for row in one.read_history()] for one in folders]
        longest = max(map(len, rows), default=0)
        full = [row for row in rows if len(row) == longest]  # failed ones are left out
        if len(full) < 2:
            raise ConfigError(f"--study {folder}: fewer than two candidates were trained in full")
        frozen = search.search_space.stage_epochs()[0]
        found.append(Curves(np.array(full), frozen, spec.experiment.seed))
    return found


def judge(curves: Curves, replay: Replay, at_once: int) -> dict[str, float]:
    """Return the figures of a replay; the winner is the best of those trained in full."""
    count, longest = curves.dice.shape
    final = curves.final
    full = [c for c, epochs in enumerate(replay.trained) if epochs == longest]
    best = set(np.argsort(-final, kind="stable")[:_BEST].tolist())
    chosen = max(full, key=lambda c: final[c]) if full else None
    return {
        "epochs": sum(replay.trained) / (count * longest),
        "regret": float(final.max() - (0.0 if chosen is None else final[chosen])),
        "same": float(chosen is not None and final[chosen] == final.max()),
        "kept": len(best & set(full)),
        "time": replay.time / (math.ceil(count / at_once) * longest),
    }


def correlation(curves: Curves, epoch: int) -> float:
    """Return Spearman's rank correlation of the scores after an epoch with those in full."""
    return float(stats.spearmanr(curves.best[:, epoch - 1], curves.final).statistic)


def _measure(args: argparse.Namespace) -> int:
    searches = [
        Search(args.candidates, args.epochs[0], sum(args.epochs), seed)
        for seed in range(args.seeds)
    ]
    if args.study:
        sets = [curves for folder in args.study for curves in read_curves(folder)]
        source = ", ".join(map(str, args.study))
    else:
        sets = [draw_curves(search) for search in searches]
        source = f"{args.seeds} seeds of SYNTHETIC curves"
    shapes = {(curves.frozen, curves.dice.shape[1]) for curves in sets}
    if len(shapes) > 1:
        raise ConfigError(f"--study: the searches differ in their epochs: {sorted(shapes)}")
    ((frozen, longest),) = shapes
    rung = frozen + UNFROZEN_EPOCHS
    if longest <= rung:
        raise ConfigError(f"{longest} epochs leave nothing to stop after {rung}")
    agree = fmean(correlation(curves, rung) for curves in sets)
    settings = (
        f"{source}, {len(sets[0].dice)} candidates of {frozen} + {longest - frozen} epochs; "
        f"Spearman of epoch {rung} with the end {agree:.2f}"
    )
    for at_once in args.at_once:
        replays = {
            name: [judge(curves, scheduler.replay(curves, at_once), at_once) for curves in sets]
            for name, scheduler in _schedulers().items()
        }
        _print(f"{settings}; drawn with no candidate stopped, {at_once} at once", replays)
    if not args.study:
        replays = _replay_with_tpe(searches)
        _print(f"{settings}; drawn by TPE as each scheduler stops, 1 at once", replays)
    return FINISHED


def _replay_with_tpe(searches: Sequence[Search]) -> dict[str, list[dict[str, float]]]:
    """Let TPE draw the candidates of each scheduler anew, one at a time."""
    found: dict[str, list[dict[str, float]]] = {}
    for name, scheduler in _schedulers().items():
        found[name] = []
        for search in searches:
            curves = draw_curves(search, scheduler.begin(search))
            figures = judge(curves, scheduler.replay(curves, 1), 1)
            figures["regret"] += OPTIMUM - float(curves.final.max())
            found[name].append(figures)
    return found


def _print(settings: str, found: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    rows = []
    for name, figures in found.items():
        mean = {key: fmean(one[key] for one in figures) for key in figures[0]}
        regrets = [one["regret"] for one in figures]
        rows.append(
            [
                name,
                f"{mean['epochs']:.0%}",
                f"{mean['regret']:.3f} ({max(regrets):.3f})",
                f"{mean['same']:.0%}",
                f"{mean['kept']:.1f}",
                f"{mean['time']:.0%}",
            ]
        )
    columns = ["epochs", "regret, mean (max)", "best chosen", f"of best {_BEST} in full", "time"]
    print_table(settings, ["scheduler", *columns], rows)
    print()


if __name__ == "__main__":
    sys.exit(main())
