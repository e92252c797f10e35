"""The demo: `python -m brainseg.demo` serves a page on which users try trained models.

`catalog` finds the models and writes example slices, `page` lays out the page with Gradio,
`handlers` does what its buttons ask for, and `render` turns predictions into HTML. Styles, scripts
and HTML fragments are in assets/.
"""
