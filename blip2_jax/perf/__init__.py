"""FLOPs by formula and by trace; rates, memory and utilisation of a run."""
