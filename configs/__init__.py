"""One file a run: `<defense>[si|he]_<data set>.py`, a docstring and the recipe of that name."""
