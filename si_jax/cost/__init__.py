"""What a run costs: floating-point operations, chips, and a plan of time and memory."""
