"""The commands: flags and printing. No other folder imports this one."""
