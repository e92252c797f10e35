"""The section on a study's search: candidates, winner, early stopping and parameters."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from brainseg.document import (
    NONE,
    Block,
    Bullets,
    Figure,
    Listing,
    Paragraph,
    Section,
    Table,
    format_number,
    format_p,
)
from study.analysis.comparison import Pair
from study.analysis.selection import Choice
from study.report.figures import STYLE, FigureWriter
from study.report.results import StudyResults, format_estimate
from study.spec.grid import Changes, parse_winner
from study.spec.search_space import VARIANT
from study.spec.study_spec import SCORE, StudySpec
from study.spec.trial_job import search_path
from study.storage.leaderboard import (
    TOP,
    leaderboard_folder,
    measure_agreement,
    measure_spent,
    ranked,
    read_candidates,
    read_leaderboard,
)
from study.storage.schema import FINISHED, Row
from study.storage.study_folder import read_spec
from study.storage.trial_folder import candidate_folder

if TYPE_CHECKING:
    from optuna import Study

_LEAST_FOR_IMPORTANCE = 8
_SLICES_PER_FIGURE = 3
_OPTUNA_STYLE: Any = {
    "figure.figsize": (7.2, 3.6),
    "figure.constrained_layout.use": True,
    "axes.grid": False,
}
_HOUR = 3600
_NOTHING_LEARNT = 0.01


def describe_search(results: StudyResults, figures: FigureWriter) -> list[Section]:
    """Return a section on settings chosen before a study, and on each of the study's searches."""
    sections = [_describe_choice(choice) for choice in results.choices if not choice.in_study]
    if not results.about.get("search"):
        return sections
    for spec in read_spec(results.folder).searches:
        rows, group = read_leaderboard(results.folder, spec), spec.group
        if not rows:
            continue
        # A search that goes on has drawn more than its table shows.
        params = read_candidates(results.folder, spec)[: len(rows)]
        blocks = [
            *_summary(spec, rows, params),
            *_best(results, spec, rows, params),
            *_winner(results, group),
            *_early_stopping(results, spec, rows),
            *_figures(results, spec, rows, params, figures),
        ]
        name = f"search-{group}" if group else "search"
        sections.append(Section(name, f"Search{group and f' of {group}'}", blocks))
    return sections


def to_optuna(
    spec: StudySpec,
    params: Sequence[Changes],
    scores: Sequence[float | None],
    curves: Sequence[Mapping[int, float]] | None = None,
) -> Study:
    """Return candidates as an Optuna study in memory, in their order.

    Args:
        spec: The study whose search drew the candidates.
        params: The parameters of each candidate.
        scores: The score of each candidate; None makes it a pruned trial.
        curves: Epoch -> score of each candidate.
    """
    from optuna import create_study, logging
    from optuna.trial import FixedTrial, TrialState, create_trial

    logging.set_verbosity(logging.ERROR)
    study = create_study(direction="maximize")
    for n, (point, score) in enumerate(zip(params, scores, strict=True)):
        fixed = FixedTrial(dict(point))
        spec.search_space.suggest(fixed)
        trial = create_trial(
            state=TrialState.PRUNED if score is None else TrialState.COMPLETE,
            params=dict(point),
            distributions=fixed.distributions,
            intermediate_values=dict(curves[n]) if curves else {},
            value=score,
        )
        study.add_trial(trial)
    return study


def _summary(spec: StudySpec, rows: Sequence[Row], params: Sequence[Changes]) -> Iterator[Block]:
    counts = Counter(row["status"] for row in rows)
    ends = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    sampler, scheduler = spec.own_search.sampler, spec.own_search.scheduler
    stopping = "none stopped early" if scheduler == "none" else f"stopped early by {scheduler}"
    text = f"{len(rows)} candidates, drawn by {sampler} and {stopping}: {ends}. "
    full = ranked(rows)
    if full:
        best = full[0]
        text += f"The best is candidate {best['candidate']} with val Dice {float(best[SCORE]):.3f}"
        if spec.search_space.is_variant(params[int(best["candidate"])]):
            text += f", which is the variant {best[VARIANT]} unchanged"
        text += ". The best score of many candidates on the same patients is optimistic."
        if float(best[SCORE]) < _NOTHING_LEARNT:
            text += " No candidate learnt anything: give the search more epochs or other ranges."
    else:
        text += "No candidate was trained in full, so there is no winner."
    yield Paragraph(text)
    folds, seeds = spec.own_search.folds, spec.own_search.seeds
    mean = f", the mean over {folds} inner fold(s) x {seeds} seed(s)" if folds * seeds > 1 else ""
    count, source = len(spec.own_search.starts), spec.own_search.warm_start
    warm = f", then {count} of the best of an earlier search, {source}" if count else ""
    yield Paragraph(
        "Candidates are trained and validated in rotation 0; the search never opens its test "
        "part. Candidates are compared by their highest val Dice (global) so far"
        f"{mean}. The first candidates are the grid's variants with their own settings{warm}. "
        "Candidates that were stopped early are not ranked against those trained in full. Where "
        "loss weights vary, val losses do not compare, but Dice does."
    )


def _best(
    results: StudyResults, spec: StudySpec, rows: Sequence[Row], params: Sequence[Changes]
) -> Iterator[Block]:
    full = ranked(rows)
    if not full:
        return
    table = [
        {
            "": str(rank),
            "candidate": row["candidate"],
            "val Dice": format_number(float(row[SCORE])),
            **{key: _shorten(row[key]) for key in (VARIANT, *spec.search_space.ranges)},
        }
        for rank, row in enumerate(full[:TOP], 1)
    ]
    yield Table(f"The best {len(table)} of {len(full)} candidates trained in full.", table)
    folder = leaderboard_folder(results.folder, spec).relative_to(results.folder)
    best_file, top = folder / "best.yaml", search_path(spec.group) / "top-1.yaml"
    study = f"{results.folder.parent.name}/{results.folder.name}"
    yield Listing(
        f"Each is a configuration file: {top} and so on. The first is also {best_file}, and with "
        "the variant that it changes a grid:",
        f"python -m study.run --config {study}/{best_file}\n"
        f"python -m study.run --grid {study}/{folder / 'best_grid.yaml'}",
    )
    best = params[int(full[0]["candidate"])]
    narrow = spec.search_space.edges(best[VARIANT], best)
    if narrow:
        yield Paragraph("Ranges that look too narrow:")
        yield Bullets([f"{line}." for line in narrow])


def _shorten(text: str) -> str:
    try:
        return f"{float(text):.3g}"
    except ValueError:
        return text or NONE


def _winner(results: StudyResults, group: str) -> Iterator[Block]:
    """Compare the retrained winner on all test patients and on those new to the search."""
    for choice in results.choices:
        found = {name: parse_winner(name) for name in choice.variants}
        winners = [name for name, winner in found.items() if winner and winner[0] == group]
        if choice.in_study and winners:
            winner = winners[-1]  # winners of earlier searches precede it
            yield from _compare_parts(
                winner,
                choice,
                f"{winner}, trained in full with other seeds than in the search: difference from "
                "each variant. Rotations other than 0 test patients that candidates were trained "
                "or judged on.",
            )


def _describe_choice(choice: Choice) -> Section:
    """Compare variants whose settings were chosen before this study on the new patients."""
    blocks: list[Block] = [
        Paragraph(
            "The grid names the patients on which settings were chosen before this study. Scores "
            "on these patients can be too high by an unknown amount."
        )
    ]
    for variant in choice.variants:
        blocks += _compare_parts(variant, choice, f"{variant}: difference from each variant.")
    return Section("chosen", "Settings chosen before this study", blocks)


def _compare_parts(variant: str, choice: Choice, caption: str) -> Iterator[Table]:
    rows = [
        _pair_row(part, pair.seen_from(variant))
        for part, pairs in choice.parts.items()
        for pair in pairs
        if variant in (pair.first, pair.second)
    ]
    if rows:
        yield Table(f"{caption} p is not corrected for the number of variants and parts.", rows)


def _pair_row(part: str, pair: Pair) -> dict[str, str]:
    return {
        "test patients": part,
        "patients": str(pair.num_patients),
        "against": pair.second,
        "difference in Dice/patient": format_estimate(pair.difference, "+.3f"),
        "p": format_p(pair.p),
    }


def _early_stopping(
    results: StudyResults, spec: StudySpec, rows: Sequence[Row]
) -> Iterator[Block]:
    spent = measure_spent(results.folder, rows, spec.group)
    if not spent.epochs_in_full:
        return
    table = [
        {
            "": "trained",
            "epochs": f"{spent.epochs:,}",
            "hours": f"{spent.seconds / _HOUR:.2f}",
            "share": format_number(spent.epochs / spent.epochs_in_full, 2),
        },
        {
            "": "all candidates in full",
            "epochs": f"{spent.epochs_in_full:,}",
            "hours": f"{spent.seconds_in_full / _HOUR:.2f}",
            "share": "1.00",
        },
    ]
    yield Table("What early stopping saved.", table)
    rungs = ", ".join(map(str, spec.halving.rungs())) or "none"
    expected = spec.halving.expected_epochs(len(rows))
    yield Paragraph(f"Rungs after epochs: {rungs}. About {expected:,.0f} epochs were expected.")
    table = [
        {
            "after epoch": str(item.rung),
            "candidates trained in full": str(item.candidates),
            "Spearman": format_number(item.spearman, 2),
            "Kendall": format_number(item.kendall, 2),
            "rank of the final best": str(item.rank),
        }
        for item in measure_agreement(rows, spec.rungs)
    ]
    if table:
        yield Table(
            "Do scores at a rung predict final scores? Rank correlations among candidates trained "
            "in full. With early stopping these are the survivors, which agree less than all "
            "candidates would.",
            table,
        )


def _figures(
    results: StudyResults,
    spec: StudySpec,
    rows: Sequence[Row],
    params: Sequence[Changes],
    figures: FigureWriter,
) -> Iterator[Block]:
    import matplotlib

    curves = [_read_curve(results, row, spec.group) for row in rows]
    if not any(curves):
        return
    finals = [float(row[SCORE]) if row["status"] == FINISHED else None for row in rows]
    rung = next(iter(spec.rungs), None)
    column, name = SCORE, "val Dice"
    if rung is not None:
        column, name = f"{SCORE}@{rung}", f"val Dice, epoch {rung}"
    scores = [float(row[column]) if row[column] else None for row in rows]
    keys = (VARIANT, *spec.search_space.ranges)
    varied = [key for key in keys if len({row[key] for row in rows} - {""}) > 1]
    matplotlib.use("Agg")
    with matplotlib.rc_context(STYLE | _OPTUNA_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its plots experimental
        study = to_optuna(spec, params, finals, curves)
        prefix = f"search_{spec.group}" if spec.group else "search"
        yield from _progress_figures(study, spec.halving.rungs(), prefix, figures)
        if varied and any(score is not None for score in scores):
            study = to_optuna(spec, params, scores)
            seed = spec.experiment.seed
            yield from _parameter_figures(study, varied, name, seed, prefix, figures)


def _read_curve(results: StudyResults, row: Row, group: str) -> dict[int, float]:
    history = candidate_folder(results.folder, int(row["candidate"]), group).read_history()
    return {int(epoch["step"]): epoch[SCORE] for epoch in history}


def _progress_figures(
    study: Study, rungs: Sequence[int], prefix: str, figures: FigureWriter
) -> Iterator[Figure]:
    from optuna.visualization import matplotlib as plots

    if any(trial.value is not None for trial in study.trials):
        axes = plots.plot_optimization_history(study, target_name="val Dice")
        axes.set_xlabel("candidate")
        yield Figure(
            _save(axes, f"{prefix}_history", figures),
            "Scatter plot: val Dice of each candidate, with a line for the best so far",
            "Candidates trained in full, in the order in which they were drawn.",
        )
    axes = plots.plot_intermediate_values(study)
    axes.set(xlabel="epoch (dotted: rungs)", ylabel="best val Dice so far")
    axes.legend_ = None
    for rung in rungs:
        axes.axvline(rung, color="0.4", linestyle=":", lw=1)
    yield Figure(
        _save(axes, f"{prefix}_curves", figures),
        "Curves: best val Dice so far of each candidate by epoch",
        "Each curve is a candidate. Curves that end at a rung were stopped there.",
    )


def _parameter_figures(
    study: Study, names: list[str], score: str, seed: int, prefix: str, figures: FigureWriter
) -> Iterator[Figure]:
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as plots

    values = [trial.value for trial in study.trials if trial.value is not None]
    if len(values) >= _LEAST_FOR_IMPORTANCE and len(set(values)) > 1:
        for method, evaluator in (
            ("fANOVA", FanovaImportanceEvaluator(seed=seed)),
            ("PED-ANOVA", PedAnovaImportanceEvaluator()),
        ):
            axes = plots.plot_param_importances(study, evaluator=evaluator)
            axes.set(xlabel=f"importance for {score}", ylabel="")
            axes.legend_ = None
            yield Figure(
                _save(axes, f"{prefix}_importance_{method.replace('-', '_').lower()}", figures),
                f"Bars: the importance of each parameter by {method}",
                f"Importance by {method}: a rough guide, because candidates are few and not "
                f"spread evenly. All candidates are compared by {score}.",
            )
    for number, first in enumerate(range(0, len(names), _SLICES_PER_FIGURE), 1):
        shown = names[first : first + _SLICES_PER_FIGURE]
        panels = plots.plot_slice(study, params=shown, target_name=score)
        yield Figure(
            _save(panels, f"{prefix}_slices_{number}", figures),
            f"Scatter plots: {score} against {', '.join(shown)}",
            "Each point is a candidate. The other parameters vary as well.",
        )
    axes = plots.plot_parallel_coordinate(study, params=names, target_name=score)
    yield Figure(
        _save(axes, f"{prefix}_parallel", figures),
        "Parallel coordinates: a line per candidate through its parameters, coloured by score",
        "Each line is a candidate. `None` marks a parameter that the candidate does not have.",
    )


def _save(axes: Any, name: str, figures: FigureWriter) -> str:
    """Save and close a figure of Optuna's in the size and with the labels of all others."""
    from matplotlib import pyplot

    figure = np.ravel(axes)[0].figure
    figure.suptitle("")
    for axis in np.ravel(axes):
        axis.set_title("")
        axis.set_title("", loc="left")
        axis.tick_params(labelsize=8)
        axis.xaxis.label.set_size(9)
    figure.set_size_inches(_OPTUNA_STYLE["figure.figsize"])
    path = figures.save(figure, name)
    pyplot.close(figure)
    return path
