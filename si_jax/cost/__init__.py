"""What a run costs, from its config alone: floating-point operations, time and memory.

`flops` counts the operations of a function or of a training step, `chips` is a table of accelerators, and
`planning` predicts time and memory from both. `mfu` compares a measured speed with the peak of the chip
(MFU is model FLOPs utilisation, the share of that peak that the model's own operations reach). No data is
read.
"""
