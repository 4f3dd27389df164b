"""dashboard: a local, read-only web page over results/ and runs/, and its static export.

Pages are rendered on the server (Jinja2), plots are Vega-Lite specifications drawn by JavaScript
that the package ships; nothing is loaded from outside the machine. Runs come from the index
(`bayesrule.runs.index`), so that ten thousand of them answer at once.
"""
