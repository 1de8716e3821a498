"""The student on the CPU at the speed of the hardware: a folded file, and compiled code for it."""
