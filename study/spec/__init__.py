"""study.spec."""
