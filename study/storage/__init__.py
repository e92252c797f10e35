"""study.storage."""
