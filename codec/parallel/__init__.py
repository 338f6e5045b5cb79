"""Many images at once: a pipeline on one machine, and Ray over several."""
