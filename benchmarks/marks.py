"""Parts of a page that a program writes, between `<!-- name -->` and `<!-- end of name -->`."""

import re


def filled(page: str, tables: dict[str, str]) -> str:
    """The page with these texts, by the names of their marks, in place of what is between these."""
    for name, text in tables.items():
        start, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
        page = re.sub(f'{start}.*?{end}', lambda _, t=f'{start}\n{text}\n{end}': t, page, flags=re.DOTALL)
    return page
