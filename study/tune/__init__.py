"""study.tune."""
