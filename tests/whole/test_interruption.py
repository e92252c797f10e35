"""Studies in processes of their own, stopped and killed for real, continued, and compared."""

from __future__ import annotations

import random
import signal
import subprocess

import pytest
from processes import PATIENCE, Study, assert_equal

from brainseg.cli import FINISHED, SOME_FAILED, STOPPED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.exhaustive
def test_a_study_interrupted_again_and_again_ends_with_the_same_bits(
    undisturbed: Study, study: Study
) -> None:
    """In stage 1 twice, at the change of stage, in stage 2."""
    moments = ((signal.SIGINT, 1), (signal.SIGKILL, 1), (signal.SIGKILL, 2), (signal.SIGTERM, 4))
    for number, step in moments:
        process = study.start()
        study.wait_for_epoch(step)
        if number == signal.SIGKILL:
            study.kill()
        else:
            process.send_signal(number)
            assert process.wait(PATIENCE) == STOPPED
            assert "the same command continues" in study.log()
    study.finish()
    assert study.log().count("continues after epoch") >= len(moments)
    assert_equal(study, undisturbed)


@pytest.mark.exhaustive
def test_a_driver_killed_at_random_moments_ends_with_the_same_bits(
    undisturbed: Study, study: Study
) -> None:
    moments = random.Random(44)
    for _ in range(3):
        process = study.start()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(moments.uniform(4, 16))
        process.kill()
        process.wait()
    study.finish()
    assert_equal(study, undisturbed)


@pytest.mark.exhaustive
def test_a_driver_killed_within_a_checkpoint_loses_that_epoch_alone(
    undisturbed: Study, study: Study
) -> None:
    process = study.start_with_fault("hang", "stage1-epoch0002")
    process.kill()
    process.wait()
    assert list(study.results.glob("trials/*/checkpoints/.stage1-epoch0002.*"))
    study.finish()
    assert "continues after epoch 1" in study.log()
    assert_equal(study, undisturbed)
    assert not list(study.results.glob("trials/*/checkpoints"))


@pytest.mark.exhaustive
def test_a_trial_killed_within_a_checkpoint_is_tried_again(
    undisturbed: Study, study: Study
) -> None:
    process = study.start_with_fault("hang", "stage2-epoch0001")
    for trial in study.trial_processes():
        trial.kill()
    assert process.wait(PATIENCE) == FINISHED, study.log()
    assert "continues after a failure" in study.log()
    assert_equal(study, undisturbed)


def test_trials_killed_in_each_stage_end_with_the_same_bits(
    undisturbed: Study, study: Study
) -> None:
    process = study.start()
    for step in (1, 2, 4):
        study.wait_for_epoch(step)
        study.trial_processes()[0].kill()
    assert process.wait(PATIENCE) == FINISHED, study.log()
    assert study.log().count("continues after a failure") == 3
    assert_equal(study, undisturbed)


@pytest.mark.exhaustive
def test_a_trial_that_dies_too_often_has_failed_and_is_run_again_on_request(
    undisturbed: Study, study: Study
) -> None:
    process = study.start("--retries", "0")
    study.wait_for_epoch(1)
    study.trial_processes()[0].kill()
    assert process.wait(PATIENCE) == SOME_FAILED
    assert "failed: " in study.log()
    again = study.start()
    assert again.wait(PATIENCE) == SOME_FAILED
    study.finish("--retry-failed")
    assert_equal(study, undisturbed)


@pytest.mark.exhaustive
def test_the_same_study_cannot_run_twice_at_once(study: Study) -> None:
    first = study.start()
    study.wait_for_epoch(1)
    refused = subprocess.run(
        study.command, cwd=study.folder, capture_output=True, timeout=PATIENCE
    )
    assert refused.returncode == 1
    assert f"is being run by process {first.pid}".encode() in refused.stderr
