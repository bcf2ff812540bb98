"""The report page: one HTML file that shows runs, their results, and images before and after an attack.

`results` finds the runs and results of a folder, and `collect` puts those of one network together.
`accuracy`, `classes`, `curves`, `gallery`, `pictures` and `runs` each make one section of the page;
`charts` draws and `labels` gives the runs their names. `summary` says in plain words what was found, and
`audits` what the audits did. `render` fills `page.html` and writes the page; `comparison` writes that of two
results held against each other, `compare.html`.
Nothing here trains, and nothing prints. Whatever comes from a file is escaped on its way into the page.
"""

from si_jax.reports.render import write

__all__ = ['write']
