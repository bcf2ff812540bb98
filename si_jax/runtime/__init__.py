"""What a program needs around its computation: devices, processes, signals and the terminal.

`devices` compiles a step for all local devices, `processes` joins the processes of one run, `agreement`
checks that they do the same, and `watchdog` notices that one is lost. `signals` and `preemption` stop a run
between two steps. `terminal`, `progress` and `profiling` are what a person sees; `environment` and
`compilation_cache` are about the machine. Nothing here knows of attacks, networks or data sets.
"""
