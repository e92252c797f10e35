"""The files of a study: what is written where, on this machine or at a URL.

`study_folder` is the whole study's folder and its study.json, `trial_folder` that of one trial.
`tables` and `leaderboard` write the CSV files from what trials and candidates left, `schema` has
the columns of these files, and `probability_maps` stores what a network predicts for each slice.
`sync` copies a study at a URL, `lease` keeps it to one driver. Needs neither Ray nor torch.
"""
