from __future__ import annotations

import pickle

from brainseg.errors import DivergedError


def test_a_diverged_training_is_the_same_error_in_another_process() -> None:
    error = pickle.loads(pickle.dumps(DivergedError(2, 3, float("inf"))))
    assert (error.stage, error.epoch, error.value) == (2, 3, float("inf"))
    assert str(error).startswith("the loss became inf in stage 2, epoch 3")
