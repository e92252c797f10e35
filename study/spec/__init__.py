"""What a study asks, without running anything: needs neither Ray nor torch.

`study_spec` is the record of a whole study, `trial_job` that of one training. `grid` has the
variants, `search_space` and `halving` what a search may draw and when it stops a candidate,
`resources` how trials share a cluster. `request` builds the specification of a command line,
`configs` finds the YAML files that come with the program.
"""
