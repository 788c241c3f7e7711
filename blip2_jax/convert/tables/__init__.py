"""Name tables: how other projects name the parameters of this package."""
