"""One file a run: `<defense>[si]_<data set>.py`, with the shared recipe in `base.py`."""
