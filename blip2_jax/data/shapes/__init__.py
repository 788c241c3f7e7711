"""The built-in default data: a generated world of coloured shapes."""
