"""Files, folders and URLs.

`files`: atomic writes, retries, CSV, the cache folder. `urls`: what a user gives, a path or a URL.
`remote`: folders behind URLs, fetched and sent. `values`: YAML, and checks of what users write.
"""
