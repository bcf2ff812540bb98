"""The commands: flags, the text of `--help`, and printing.

One module is one command: `train`, `evaluate`, `audit`, `compare`, `report`, `page`, `figures`, `plan`,
`launch`, `export` and `zoo`. Each reads its flags, calls the library and prints what comes back, so that
whatever a command does can be done in Python too. `subject` has the flags of the network and images that
evaluate.py is about, and loads them. No other folder imports this one.
"""
