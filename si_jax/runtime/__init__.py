"""What a program needs around it: devices, processes, signals, progress and the terminal."""
