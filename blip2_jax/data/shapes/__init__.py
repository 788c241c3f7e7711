"""The embedded default: a generated world of coloured shapes that talks about itself."""
