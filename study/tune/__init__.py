"""Everything that uses Ray: the only package that imports it.

`cluster` starts or joins Ray. `tuner` hands the trials to Tune, `trainable` is what runs in a
worker. `searcher` draws the candidates of a search, `schedulers` stops poor ones. `progress`,
`waiting` and `tensorboard` tell what is going on.
"""
