"""Training: a run is a recipe, set up, a compiled step, and hooks between the steps.

    recipes, recipe_fields    the configs by name, and their fields as a table
    setup                     a config, checked, becomes data, network, optimiser and the compiled step
    step, free, update        the steps by name: attack and update in one pure function, and what they share
    state, feed, schedules    what a step takes and returns, its batches, its learning rate
    average, recompute        the average of the weights, and its batch statistics
    loop                      takes a step, calls the hooks
    hooks, run                what happens between steps, and the run that the hooks read and write
    validation, overfitting   what is measured after an epoch
    log, symptoms             what a run prints, and training that goes wrong without an error
    checkpoints, workdir, metrics    what a run leaves on the disk
    timing                    how fast this machine makes a step

A defense names its step, `STEPS` in `step` has it under that name, and `loop.run(config, workdir)` trains.
"""
