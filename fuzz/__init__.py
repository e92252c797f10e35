"""Hands damaged files to the readers: each answers with a result or a BrainsegError."""
