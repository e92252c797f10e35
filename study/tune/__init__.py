"""Everything that uses Ray: the only package that imports it.

`cluster` starts or joins Ray. `tuner` hands the trials to Tune, `trainable` is what runs in a
worker, and `failures` decides what counts as a failure of a trial. `searcher` draws the
candidates of a search, `schedulers` stops poor ones. `progress` prints epochs, `waiting` says why
trials wait, and `tensorboard` writes live curves.
"""

import os

# Set before Ray is imported. Trials stay in the user's working directory, so that relative paths
# keep their meaning; `study.tune.tensorboard` writes the TensorBoard files.
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # ours takes SIGTERM too
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # or Tune prints tables beside our progress
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
