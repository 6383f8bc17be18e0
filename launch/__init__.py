"""What a person runs. These modules parse, call and print; nothing else."""
