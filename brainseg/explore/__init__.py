"""Exploration of a dataset: `python -m brainseg.explore` writes one page about it.

`measurements` measures every slice, `covariates` tests patients' data against tumour size,
`quality` looks for errors in slices, masks and splits, `exploration` puts the results together,
`figures` draws them, and `page` writes them as HTML.
"""
