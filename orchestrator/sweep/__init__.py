"""Many runs of one config with other values: their space, their records, their jobs."""
