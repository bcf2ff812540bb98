"""The report page: what runs were, what they measured, and what an attack does to their images, in one file.

`collect` reads the files, `accuracy`, `classes`, `curves`, `gallery` and `pictures` each make one section of
them, `charts` draws, and `render` fills `page.html`. Whatever comes from a file is escaped on its way there.
"""

from si_jax.reports.page import write

__all__ = ['write']
