"""Reads the best candidates of an earlier search, with which a search begins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from brainseg.errors import ConfigError, StudyError
from brainseg.storage.files import user_path
from brainseg.storage.values import cut
from study.spec.grid import Changes
from study.spec.request import Say
from study.spec.search_space import VARIANT
from study.spec.study_spec import StudySpec
from study.storage.leaderboard import TOP, count_open, ranked, read_candidates, read_leaderboard
from study.storage.study_folder import read_spec


def add_warm_start(spec: StudySpec, begun: StudySpec | None, say: Say) -> StudySpec:
    """Give a search the best candidates of an earlier one to begin with.

    Args:
        spec: What the study asks; `warm_start` of its search is the earlier study's folder.
        begun: What the study asked when it began: the candidates that it took then are kept.
        say: Called with the candidates that do not fit.

    Raises:
        StudyError: If there is no such search, it is not over or judged by other patients.
        ConfigError: If none of its candidates fits the space.
    """
    if spec.search is None or not spec.search.warm_start:
        return spec
    where = f"--warm-start {cut(spec.search.warm_start)}"
    source = user_path(spec.search.warm_start, "--warm-start").resolve()
    taken = begun.search if begun is not None else None
    starts = taken.starts if taken is not None and taken.warm_start == source.name else None
    if starts is None:
        starts = tuple(_read_starts(source, where, spec, say))
    for one in spec.searches:
        own = sum(start[VARIANT] in one.variants for start in starts)
        room = max(0, spec.search.candidates - len(one.variants))
        group = f" for {one.group}" if one.group else ""
        say(f"Warm start: {min(room, own)} candidates of {source.name}{group}")
        if room < own:
            say(f"Note: {where}: {own - room} more{group} do not fit into --search N; raise N")
    search = spec.search.model_copy(update={"warm_start": source.name, "starts": starts})
    return spec.model_copy(update={"search": search})


def _read_starts(source: Path, where: str, spec: StudySpec, say: Say) -> Iterator[Changes]:
    if not (source / "study.json").is_file():
        raise StudyError(
            f"{where}: there is no study.json; expected the folder of a study with a search, such "
            "as results/lite"
        )
    earlier = read_spec(source)
    _check_judges(earlier, where, spec)
    misfits: list[str] = []
    known = [spec.search_space.baseline(variant) for variant in spec.variants]
    num_variants = len(known)
    for search in earlier.searches:
        if left := count_open(source, search):
            raise StudyError(
                f"{where}: its search is not over, {left} candidates are left: the command that "
                "started it continues it"
            )
        all_params = read_candidates(source, search)
        for row in ranked(read_leaderboard(source, search))[:TOP]:
            params = all_params[int(row["candidate"])]
            try:
                start = spec.search_space.nearest_params(search.search_space.experiment(params))
            except ConfigError as error:
                misfits.append(f"candidate {row['candidate']} does not fit: {error}")
                continue
            if start not in known:
                known.append(start)
                yield start
    if len(known) == num_variants and misfits:
        raise ConfigError(f"{where}: {misfits[0]}")
    if len(known) == num_variants:
        raise StudyError(f"{where}: no candidate but the variants themselves ran in full")
    for misfit in misfits:
        say(f"Note: {where}: {misfit}")


def _check_judges(earlier: StudySpec, where: str, spec: StudySpec) -> None:
    """Refuse a search whose candidates were judged by patients that do not judge here."""
    if earlier.search is None:
        raise StudyError(f"{where}: the study has no search")
    if _judges(earlier) != _judges(spec):
        raise StudyError(
            f"{where}: its candidates were judged on other data or another split, perhaps by "
            "patients that are tested here: give a search on the same data and split"
        )
    ours, theirs = spec.experiment.inner_fold, earlier.experiment.inner_fold
    if ours != theirs:
        raise StudyError(
            f"{where}: its candidates were judged with inner_fold {theirs}, here it is {ours}: "
            f"give --set inner_fold={theirs}"
        )
    if not set(earlier.inner_folds) <= set(spec.inner_folds):
        raise StudyError(
            f"{where}: its candidates were judged on {earlier.search.folds} pairs of folds, here "
            f"they are judged on fewer: give --search-folds {earlier.search.folds}"
        )


def _judges(spec: StudySpec) -> tuple[object, ...]:
    """Return what decides which patients a search learns from and which judge it."""
    parts = [job.experiment.data for job in spec.jobs()[: len(spec.variants)]]
    return spec.fingerprint, {(p.split, p.split_seed, spec.files.get(p.split)) for p in parts}
