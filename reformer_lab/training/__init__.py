"""Training that survives interruption: the loop, schedules, checkpoints, run folders."""
