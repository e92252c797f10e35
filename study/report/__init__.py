"""study.report."""
