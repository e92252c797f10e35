"""The study: a grid of experiments scheduled by Ray Tune, tested once, compared, reported."""
