"""The commands: flags, the text of `--help`, and printing.

One module is one command: `train`, `evaluate`, `audit`, `compare`, `report`, `page`, `figures`, `plan`,
`launch`, `export` and `zoo`. Each reads its flags, calls the library and prints what comes back, so that
whatever a command does can be done in Python too. `subject` loads the network that evaluate.py is about,
and `speed` words how fast that was. No other folder imports this one.
"""
