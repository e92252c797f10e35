"""The report of a study, written from its files alone: neither Ray nor torch is needed.

`build.write_report` writes everything. `results` reads the files and runs the analysis. The
sections are written by `sections`, `example_sections`, `search_section`, `patients` and
`provenance`, their figures by `figures`; `checklist` says which items of guidelines they answer.
`model_cards` describes exported models, `report_json` writes every number for programs.
`examples` draws the example slices at the end of a study, while the dataset is at hand.
"""
