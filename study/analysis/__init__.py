"""Statistics of a study's test scores: what its CSV files show about its variants.

`scores` arranges the rows of the files as arrays and tables. `bootstrap` makes intervals,
`comparison` compares the variants (ranks, pairs, p-values), `variance` divides their spread into
causes, and `conclusion` puts the result into words. `subgroups`, `postprocessing` and
`calibration` each answer one further question; `rankings` ranks by other metrics, `leak` says
what a leaky split is worth, `selection` compares variants on patients that chose no settings.
`protocol` fixes the analysis before the first trial.
"""
