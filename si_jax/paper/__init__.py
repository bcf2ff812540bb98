"""The paper's tables and figures, with the results of runs beside the paper's numbers.

A table is data: `paper_tables` holds the paper's, `studies` ours, both made of what `cells` defines.
`configs` gives the config behind a row, `matching` finds its runs, `fitting` the results of its columns.
`commands` names what is still to be run; `tables` prints, and `report` puts the parts together. `figures`
has one module for each figure. No other library module needs this folder: a new table is a new piece of
data here.
"""
