"""The site of these pages: `make docs` builds it into build/docs."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'docs')]

from si_jax import __version__  # noqa: E402

project = 'si_jax'
author = 'the authors of si_jax'
version = release = __version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx_copybutton', 'reference']
myst_heading_anchors = 3
myst_links_external_new_tab = False
suppress_warnings = ['myst.header']  # README and CHANGELOG begin below their own titles
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'
autodoc_class_signature = 'separated'
napoleon_attr_annotations = False
napoleon_use_ivar = True
default_role = 'code'
smartquotes = False
pygments_style, pygments_dark_style = 'a11y-light', 'a11y-dark'

html_theme = 'furo'
html_title = 'si_jax'
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_static_path = ['static']
html_css_files = ['site.css']

# The reading order. A page that is not named here comes last; one that is not there is left out.
PAGES = {
    'Begin': ['install', 'first', 'attack', 'reading', 'judging', 'glossary'],
    'Evaluate': ['evaluation', 'attacks', 'pytorch', 'random', 'radii', 'audit', 'adaptive', 'trust'],
    'Train': ['training', 'defenses', 'recipes', 'own_defense', 'data', 'zoo'],
    'Report': ['compare', 'report', 'tables', 'study', 'figures', 'table5', 'sharing'],
    'Scale': ['pods', 'performance', 'reliability'],
    'More': ['examples', 'related'],
    'Reference': ['commands', 'configs', 'catalogue', 'networks', 'api'],
    'Project': ['contributing', 'releasing', 'changelog'],
}


def contents() -> str:
    """The tables of contents of the first page."""
    there = {path.stem for path in (ROOT / 'docs').glob('*.md')} - {'index'}
    known = [page for pages in PAGES.values() for page in pages]
    trees = PAGES | {'Others': sorted(there.difference(known))}
    blocks = []
    for caption, pages in trees.items():
        if shown := [page for page in pages if page in there]:
            blocks.append('\n'.join([f'```{{toctree}}\n:hidden:\n:caption: {caption}\n', *shown, '```']))
    return '\n\n'.join(blocks)


def relink(text: str, folder: pathlib.Path) -> str:
    """The links of a page in a folder, as they are to be on the site.

    Links to folders become plain words, as a site has nothing to show there; what is included from the
    project's folder gets the way from docs/ to its files.
    """

    def link(found: re.Match) -> str:
        words, target = found.groups()
        if (folder / target).is_dir():
            return words
        if folder == ROOT and not target.startswith('docs/'):
            page = f'{target.removesuffix(".md").lower()}.md'
            target = page if (ROOT / 'docs' / page).exists() else f'../{target}'
        return f'[{words}]({target})'

    return re.sub(r'(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)]+?)/?\)', link, text)


def accessible(app, pagename, templatename, context, doctree) -> None:
    """Headings of the contents get a level, what scrolls can have the focus, and flags stay whole."""
    contents = context.get('furo_navigation_tree', '')
    context['furo_navigation_tree'] = contents.replace('role="heading"', 'role="heading" aria-level="2"')
    body = context.get('body', '').replace('<pre>', '<pre tabindex="0">')
    body = body.replace('<div class="table-wrapper', '<div tabindex="0" class="table-wrapper')
    context['body'] = re.sub(r'(?m)(^|(?<= ))(--[\w-]+[^\s<]*)', r'<span class="flag">\2</span>', body)


def setup(app) -> None:
    def read(app, docname, content):
        content[0] = relink(content[0].replace('<!-- contents -->', contents()), ROOT / 'docs')

    def include(app, path, docname, content):
        content[0] = relink(content[0], (ROOT / 'docs' / path).resolve().parent)

    app.connect('source-read', read)
    app.connect('include-read', include)
    app.connect('html-page-context', accessible, priority=900)  # after the theme made the contents
