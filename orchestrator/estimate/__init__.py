"""What a run needs before it starts: memory of every GPU, time of a step. Pure arithmetic on a config, its plan and facts."""
